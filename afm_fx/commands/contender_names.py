"""How the command line names contenders, ``NAME=WHAT`` or ``NAME=WHAT@HOW``, and what they are given to run.

WHAT is an ONNX file, an AOTInductor package (``.pt2``) or a model as ``package.module:factory``. HOW is an execution
provider for a file, ``compile`` for a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from torch import Tensor

from afm_fx.data import match_columns, open_data, read_tensors
from afm_fx.errors import BenchmarkError, UserError
from afm_fx.measure import AOTI_SUFFIX, ModelFactory, OnnxFile
from afm_fx.runtime import file_examples, load_aoti, random_file_inputs, traffic_examples

Named: TypeAlias = Path | OnnxFile | ModelFactory
"""An AOTInductor package, an ONNX file or a model."""

ContendersArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME=WHAT[@HOW]...",
        help="ONNX files (FILE@cuda: by that execution provider, else the CPU), AOTInductor packages (.pt2) or models "
        "(package.module:factory, @compile for torch.compile). The first is the reference of all ratios.",
    ),
]
InputsOption = Annotated[
    Path | None,
    typer.Option(
        help="Rows to run, .npz, .npy or .parquet; real ids matter, for they decide what lies in the cache.",
        show_default="random: numbers in [0, 1), ids 0 and 1",
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads within an operator.")]

COMPILE = "compile"


def parse_contenders(texts: Sequence[str], checkpoint: Path | None = None) -> dict[str, Named]:
    """The contenders that the command line names, in its order.

    Raises:
        UserError: a text is not of this form, or a name is given twice.
    """
    contenders: dict[str, Named] = {}
    for text in texts:
        name, equals, target = text.partition("=")
        if not (name and equals and target):
            raise UserError(f"a file is given as NAME=FILE; got '{text}'")
        if name in contenders:
            raise UserError(f"a name is given to two files: '{name}'")
        contenders[name] = _contender(target, checkpoint)
    return contenders


def _contender(target: str, checkpoint: Path | None) -> Named:
    if Path(target).is_file():  # a file's own name may hold an @
        what, how = target, ""
    else:
        what, _, how = target.partition("@")
    suffix = Path(what).suffix
    if ":" in what and not Path(what).is_file() and suffix not in (".onnx", AOTI_SUFFIX):
        if how not in ("", COMPILE):
            raise UserError(f"a model runs as it is, or with @{COMPILE}; got '{target}'")
        return ModelFactory(what, checkpoint, compiled=bool(how))
    if suffix != AOTI_SUFFIX:
        return OnnxFile(Path(what), how) if how else OnnxFile(Path(what))
    if how:
        raise UserError(f"an AOTInductor package is compiled for its device, so nothing follows it; got '{target}'")
    return Path(what)


def contender_inputs(contenders: Mapping[str, Named], data: Path | None, rows: int) -> dict[str, Tensor]:
    """Inputs by name that all contenders can be given.

    Args:
        data: a data file, None for random numbers in [0, 1) and ids 0 and 1.
        rows: rows at most; a data file may have fewer.

    Raises:
        BatchError: the data do not fit the inputs.
        BenchmarkError: all of them are models.
        FileFormatError: a file is missing or damaged.
    """
    file = None if data is None else open_data(data)
    onnx_files = [each.path for each in contenders.values() if isinstance(each, OnnxFile)]
    packages = [each for each in contenders.values() if isinstance(each, Path)]
    mapping = None
    if onnx_files:
        examples, mapping = traffic_examples(onnx_files, () if file is None else file.names)
    elif packages:
        examples = file_examples(load_aoti(packages[0]).note.inputs)
    else:
        raise BenchmarkError("models do not name what they take; enter an exported file beside them, which does")
    if file is None:
        return random_file_inputs(examples, rows, mapping=mapping)
    tensors = next(read_tensors(file, match_columns(file, examples), rows))
    return {name: tensor for (name, _), tensor in zip(examples, tensors, strict=True)}
