"""AOTInductor packages: a program compiled ahead of time, proved to compute the same, served with its inputs checked.

A package (``.pt2``) holds machine code for this kind of processor and the weights. It is compiled for tensors of
certain dtypes and shapes and does not look at them: a wrong shape reads foreign memory. So the package notes its
inputs, and :class:`AotiModel` checks them. Ids it does look at (:mod:`passes.serving.assert_ids`), whoever loads it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, ExportError, FileFormatError, MissingPackageError, UserError, short_reason
from afm_fx.io import from_json, quiet, render_table, staged_file, to_json
from afm_fx.program import InputMapping, Inputs, Program, exported, require_program
from afm_fx.runtime.artifact import FileValue
from afm_fx.runtime.file_inputs import batch_rows, bind_batch
from afm_fx.runtime.onnx_parity import compare_with_torch
from afm_fx.runtime.onnx_runtime import check_threads
from afm_fx.runtime.onnx_signature import input_values

NOTE_KEY, NOTE_VERSION = "afm_fx_package", 3
"""Under which a :class:`PackageNote` stands in the package's metadata, and its version."""

NO_COMPILER = (
    "AOTInductor needs a C++ compiler and found none: install g++ (on Debian and Ubuntu 'apt-get install g++', on "
    "Fedora 'dnf install gcc-c++', on macOS 'xcode-select --install'), or name one in the environment variable CXX"
)


@dataclass(frozen=True)
class PackageNote:
    """What a package says of itself.

    Attributes:
        inputs: its input tensors in order, named as :meth:`Program.leaf_names` does.
        threads: of its own loops; matrix products follow ``torch.set_num_threads``.
        typed: how typed inputs are made of the original's , None for plain inputs.
    """

    inputs: tuple[FileValue, ...]
    threads: int
    typed: InputMapping | None


@dataclass(frozen=True)
class AotiReport:
    """What was compiled and how closely it agrees.

    Attributes:
        max_abs_difference: largest absolute difference from torch on fresh random inputs at several batch sizes.
        seconds: wall-clock time, check included.
    """

    path: Path
    bytes: int
    parameters: int
    threads: int
    max_abs_difference: float
    seconds: float

    def table(self) -> str:
        """The report as text."""
        rows = [
            ("parameters", f"{self.parameters:,}"),
            ("bytes", f"{self.bytes:,}"),
            ("threads of its loops", self.threads),
            ("largest difference to torch", f"{self.max_abs_difference:.2e}"),
            ("seconds", f"{self.seconds:.1f}"),
        ]
        return render_table(f"Compiled {self.path}", ("property", "value"), rows, left=2)

    def line(self) -> str:
        """The report on one line."""
        difference = f"largest difference to torch {self.max_abs_difference:.2e}"
        return f"{self.path.name}: compiled in {self.seconds:.0f} s, {difference}"


@dataclass(frozen=True)
class AotiModel:
    """A loaded package.

    Attributes:
        loader: torch's runner of the compiled code.
        out_spec: structure of the outputs.
    """

    path: Path
    note: PackageNote
    loader: Any
    out_spec: Any

    def run(self, inputs: Inputs) -> Any:
        """Runs one batch (tensor, tuple or dict); returns what the program returns.

        Raises:
            BatchError: names, shapes or dtypes are not those that the package was compiled for, or an id is outside its
                table (which the compiled code itself refuses, by whomever it is loaded).
        """
        try:
            tensors = self.bind(inputs)
        except BatchError as error:
            raise BatchError(f"'{self.path.name}' {error}") from error
        try:
            results = self.call(tensors)
        except RuntimeError as error:
            raise BatchError(f"'{self.path.name}' refuses the batch: {_first_line(error)}") from error
        return pytree.tree_unflatten(results, self.out_spec)

    def bind(self, inputs: Inputs) -> list[Tensor]:
        """The input tensors in the package's order: by name from a dict of exactly its names, else by position.

        A package with typed inputs takes a batch of the original's too.

        Raises:
            BatchError: they do not fit; the message begins with a verb.
        """
        tensors = bind_batch(inputs, self.note.inputs, self.note.typed)
        batch_rows(self.note.inputs, tensors)
        return [tensor.contiguous() for tensor in tensors]

    def call(self, tensors: list[Tensor]) -> list[Tensor]:
        """The compiled code itself, without checks."""
        return self.loader.boxed_run(list(tensors))  # type: ignore[no-any-return]  # it empties the list it is given


def export_aoti(program: Program, path: str | os.PathLike[str], *, threads: int = 1, force: bool = False) -> AotiReport:
    """Compiles a program into an AOTInductor package with a free batch size, and compares it with torch.

    Load it with :func:`afm_fx.load_aoti` (which checks inputs), with ``torch._inductor.aoti_load_package``, or from
    C++ with ``torch::inductor::AOTIModelPackageLoader``. It runs on processors of the kind it was compiled on.

    Args:
        path: the package, ``*.pt2``. Missing directories are created.
        threads: threads that the generated loops run on, fixed when they are compiled; matrix products follow
            ``torch.set_num_threads`` in the serving process, so set the same number there. Where more than one thread
            shares its cores with other work, set OMP_WAIT_POLICY=passive: threads that wait spin otherwise, and the
            thread that they wait for gets no core.

    Raises:
        OutputExistsError: the path exists and ``force`` is not set.
        UserError: the name does not end in ``.pt2``, ``threads`` is below 1, or nothing can be written there.
        MissingPackageError: there is no C++ compiler; the message says what to install.
        ExportError: torch cannot compile the program, or the package's outputs differ from torch's.
    """
    require_program(program, "afm_fx.export_aoti")
    started = time.perf_counter()
    target = Path(path)
    if target.suffix != ".pt2":
        raise UserError(f"an AOTInductor package is called *.pt2, got '{target.name}'")
    check_threads(threads)
    note = PackageNote(input_values(program), threads, program.file_mapping())
    with staged_file(target, force=force) as staged:
        _compile(program, staged, note)
        model = load_aoti(staged)
        difference = compare_with_torch(program, lambda given: model.call(model.bind(tuple(given))))
        size = staged.stat().st_size
    return AotiReport(target, size, program.parameter_count(), threads, difference, time.perf_counter() - started)


def load_aoti(path: str | os.PathLike[str]) -> AotiModel:
    """Loads a package that :func:`afm_fx.export_aoti` wrote.

    ``torch._inductor.aoti_load_package(path)`` loads it as well, without this package and without checks.

    A package is machine code, and loading it executes what is in it: load none that you would not run as a program.
    Where a file comes from elsewhere, take its ONNX form, of which nothing is executed.

    Raises:
        FileFormatError: there is no such file, it is damaged, or something else wrote it.
    """
    file = Path(path)
    if not file.is_file():
        raise FileFormatError(f"there is no file '{file}'")
    try:
        model = torch._inductor.aoti_load_package(str(file))
        metadata: dict[str, str] = model.loader.get_metadata()
        out_spec = pytree.treespec_loads(model.loader.get_call_spec()[1])
    except Exception as error:  # torch's loader raises many unrelated types
        raise FileFormatError(f"'{file}' is damaged or not an AOTInductor package: {short_reason(error)}") from error
    if NOTE_KEY not in metadata:
        raise FileFormatError(f"'{file}' does not say what its inputs are; afm_fx.export_aoti writes packages that do")
    note = from_json(metadata[NOTE_KEY], PackageNote, NOTE_VERSION, f"the note of '{file}'")
    return AotiModel(file, note, model.loader, out_spec)


def _first_line(error: Exception) -> str:
    """What the compiled code says, without its stack."""
    return str(error).partition("\n")[0]


def _compile(program: Program, staged: Path, note: PackageNote) -> None:
    _find_compiler()
    metadata = {NOTE_KEY: to_json(note, NOTE_VERSION)}
    configs: dict[str, Any] = {"cpp.threads": note.threads, "aot_inductor.metadata": metadata}
    try:
        with quiet():
            # Lookups and sums are fused into one loop, bags are calls.
            graph = exported(program, unpool_bags=True, check_ids=True)
            with torch.no_grad(), _one_compiler():
                torch._inductor.aoti_compile_and_package(graph, package_path=str(staged), inductor_configs=configs)
    except Exception as error:  # the compiler raises many unrelated types
        raise ExportError(f"AOTInductor cannot compile this program: {short_reason(error)}") from error


def _one_compiler() -> FileLock:
    """Held by one process at a time.

    The compiler works in a directory that it names after the program's code, whatever the weights: two processes that
    export programs of one structure at once would pack each other's half-written files.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # noqa: PLC0415 - as in _find_compiler

    directory = Path(cache_dir())
    directory.mkdir(parents=True, exist_ok=True)
    return FileLock(directory / "afm_fx.lock")


def _find_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415 - imports the compiler's whole machinery
    from torch._inductor.exc import InvalidCxxCompiler  # noqa: PLC0415 - the same

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise MissingPackageError(NO_COMPILER) from error
