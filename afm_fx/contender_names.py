"""How the command line names contenders, ``NAME=WHAT`` or ``NAME=WHAT@HOW``, and what they are given to run.

WHAT is an ONNX file, an AOTInductor package (``.pt2``) or a model as ``package.module:factory``. HOW is an execution
provider for a file; for a model ``compile``, ``cuda`` or both with a comma between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from afm_fx.aoti_model import load_aoti
from afm_fx.contenders import AOTI_SUFFIX, OnnxFile
from afm_fx.data_files import open_data
from afm_fx.errors import UserError
from afm_fx.file_inputs import inputs_from_file, random_file_inputs, traffic_examples
from afm_fx.model_contender import ModelFactory

CONTENDER_HELP = (
    "ONNX files (FILE@cuda: by that execution provider), AOTInductor packages (.pt2) or models "
    "(package.module:factory, @compile for torch.compile, @cuda)."
)
COMPILE, CUDA = "compile", "cuda"


def parse_contenders(
    texts: Sequence[str], provider: str = "cpu", checkpoint: Path | None = None
) -> dict[str, OnnxFile | ModelFactory]:
    """The contenders that the command line names, in its order.

    Args:
        texts: one for each.
        provider: of the ONNX files that name none.
        checkpoint: of all models.

    Raises:
        UserError: a text is not of this form, or a name is given twice.
    """
    found = {}
    for text in texts:
        name, equals, target = text.partition("=")
        if not (name and equals and target):
            raise UserError(f"a file is given as NAME=FILE; got '{text}'")
        if name in found:
            raise UserError(f"a name is given to two files: '{name}'")
        found[name] = _contender(target, provider, checkpoint)
    return found


def _contender(target: str, provider: str, checkpoint: Path | None) -> OnnxFile | ModelFactory:
    if Path(target).is_file():  # a file's own name may hold an @
        what, how = target, ""
    else:
        what, _, how = target.partition("@")
    if ":" in what and not Path(what).is_file() and Path(what).suffix not in (".onnx", AOTI_SUFFIX):
        options = [option for option in how.split(",") if option]
        unknown = [option for option in options if option not in (COMPILE, CUDA)]
        if unknown:
            raise UserError(f"a model runs as it is, or with @{COMPILE}, @{CUDA} or both; got '{target}'")
        return ModelFactory(what, checkpoint, COMPILE in options, "cuda" if CUDA in options else "cpu")
    if Path(what).suffix == AOTI_SUFFIX:
        if how:
            raise UserError(f"an AOTInductor package is compiled for its device, so nothing follows it; got '{target}'")
        return OnnxFile(Path(what))
    return OnnxFile(Path(what), how or provider)


def contender_inputs(
    contenders: Mapping[str, OnnxFile | ModelFactory], data: Path | None, rows: int, seed: int
) -> dict[str, Tensor]:
    """Inputs by name that all contenders can be given.

    Args:
        contenders: what is to run.
        data: a data file, None for random numbers in [0, 1) and ids 0 and 1.
        rows: rows at most; a data file may have fewer.
        seed: of random inputs.

    Raises:
        BatchError: the data do not fit the inputs.
        FileFormatError: a file is missing or damaged.
    """
    file = None if data is None else open_data(data)
    files = [each.path for each in contenders.values() if isinstance(each, OnnxFile)]
    onnx_files = [path for path in files if path.suffix != AOTI_SUFFIX]
    mapping = None
    if onnx_files:
        examples, mapping = traffic_examples(onnx_files, () if file is None else file.names)
    elif files:
        examples = load_aoti(files[0]).examples()
    else:
        examples = next(each for each in contenders.values() if isinstance(each, ModelFactory)).examples()
    if file is None:
        return random_file_inputs(examples, rows, seed, mapping)
    return inputs_from_file(file, examples, rows)
