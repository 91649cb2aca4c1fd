"""How the command line names contenders, ``NAME=WHAT`` or ``NAME=WHAT@HOW``, and what they are given to run.

WHAT is an ONNX file, an AOTInductor package (``.pt2``) or a model as ``package.module:factory``. HOW is an execution
provider for a file, ``compile`` for a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

import afm_fx
from afm_fx.commands.command_options import DATA, existing
from afm_fx.errors import BenchmarkError, UserError

if TYPE_CHECKING:
    from torch import Tensor

Named: TypeAlias = "Path | afm_fx.OnnxFile | afm_fx.ModelFactory"
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
        callback=existing("data file"),
        rich_help_panel=DATA,
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Threads within an operator.")]

COMPILE, ONNX, PACKAGE = "compile", ".onnx", ".pt2"


def parse_contenders(texts: Sequence[str], checkpoint: Path | None = None) -> dict[str, Named]:
    """The contenders that the command line names, in its order.

    Raises:
        UserError: a text is not of this form, a name is given twice, or a file is not there.
    """
    targets: dict[str, tuple[str, str]] = {}
    for text in texts:
        name, equals, target = text.partition("=")
        if not (name and equals and target):
            raise UserError(f"a file is given as NAME=FILE; got '{text}'")
        if name in targets:
            raise UserError(f"a name is given to two files: '{name}'")
        targets[name] = _what_and_how(target)
    existing("file")([Path(what) for what, _ in targets.values() if not _is_model(what)])
    return {name: _contender(what, how, checkpoint) for name, (what, how) in targets.items()}


def _what_and_how(target: str) -> tuple[str, str]:
    """The parts of a contender's text, checked."""
    what, _, how = (target, "", "") if Path(target).is_file() else target.partition("@")  # a file may hold an @
    if _is_model(what):
        if how not in ("", COMPILE):
            raise UserError(f"a model runs as it is, or with @{COMPILE}; got '{target}'")
        return what, how
    if how and Path(what).suffix == PACKAGE:
        raise UserError(f"an AOTInductor package is compiled for its device, so nothing follows it; got '{target}'")
    return what, how


def _is_model(what: str) -> bool:
    return ":" in what and not Path(what).is_file() and Path(what).suffix not in (ONNX, PACKAGE)


def _contender(what: str, how: str, checkpoint: Path | None) -> Named:
    if _is_model(what):
        return afm_fx.ModelFactory(what, checkpoint, compiled=bool(how))
    if Path(what).suffix == PACKAGE:
        return Path(what)
    return afm_fx.OnnxFile(Path(what), how) if how else afm_fx.OnnxFile(Path(what))


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
    file = None if data is None else afm_fx.data.open_data(data)
    onnx_files = [each.path for each in contenders.values() if isinstance(each, afm_fx.OnnxFile)]
    packages = [each for each in contenders.values() if isinstance(each, Path)]
    mapping = None
    if onnx_files:
        examples, mapping = afm_fx.runtime.traffic_examples(onnx_files, () if file is None else file.names)
    elif packages:
        examples = afm_fx.runtime.file_examples(afm_fx.load_aoti(packages[0]).note.inputs)
    else:
        raise BenchmarkError("models do not name what they take; enter an exported file beside them, which does")
    if file is None:
        return afm_fx.runtime.random_file_inputs(examples, rows, mapping=mapping)
    tensors = next(afm_fx.data.read_tensors(file, afm_fx.data.match_columns(file, examples), rows))
    return {name: tensor for (name, _), tensor in zip(examples, tensors, strict=True)}
