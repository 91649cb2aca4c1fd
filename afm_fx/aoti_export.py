"""Compiles a program ahead of time with AOTInductor, and proves that the package computes the same.

The package (``.pt2``) holds machine code for this kind of processor and the weights. It is written beside its target,
checked there, and moved into place last.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.aoti_model import INPUTS_KEY, AotiModel, PackageInput, load_aoti
from afm_fx.errors import ExportError, MissingPackageError, UserError, short_reason
from afm_fx.exported_program import exported
from afm_fx.onnx_parity import output_difference, parity_rows
from afm_fx.output_directory import refuse_existing_file, staging_directory
from afm_fx.program import Program
from afm_fx.random_inputs import example_call, random_inputs
from afm_fx.tables import render_table

NO_COMPILER = (
    "AOTInductor needs a C++ compiler and found none: install g++ (on Debian and Ubuntu 'apt-get install g++', on "
    "Fedora 'dnf install gcc-c++', on macOS 'xcode-select --install'), or name one in the environment variable CXX"
)


@dataclass(frozen=True)
class AotiReport:
    """What was compiled and how closely it agrees.

    Attributes:
        path: the package.
        bytes: its size.
        parameters: scalar parameters of the program.
        inputs: its input tensors.
        threads: threads of its own loops.
        max_abs_difference: largest absolute difference from torch on fresh random inputs, None where the check was
            left out.
        checked_rows: batch sizes of that check.
        compile_seconds: wall-clock time of the compiler.
        seconds: wall-clock time of the whole export, check included.
    """

    path: Path
    bytes: int
    parameters: int
    inputs: tuple[PackageInput, ...]
    threads: int
    max_abs_difference: float | None
    checked_rows: tuple[int, ...]
    compile_seconds: float
    seconds: float

    def table(self) -> str:
        """The report as text."""
        if self.max_abs_difference is None:
            parity = "not checked"
        else:
            parity = f"{self.max_abs_difference:.2e} (batch {', '.join(map(str, self.checked_rows))})"
        rows = [
            ("inputs", ", ".join(each.name for each in self.inputs)),
            ("parameters", f"{self.parameters:,}"),
            ("bytes", f"{self.bytes:,}"),
            ("threads of its loops", self.threads),
            ("largest difference to torch", parity),
            ("seconds", f"{self.seconds:.1f}, of which {self.compile_seconds:.1f} in the compiler"),
        ]
        return render_table(f"Compiled {self.path}", ("property", "value"), rows, left=2)


def export_aoti(
    program: Program,
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    check: bool = True,
    force: bool = False,
    tolerance: float | None = None,
    seed: int = 0,
) -> AotiReport:
    """Compiles a program into an AOTInductor package with a free batch size.

    Load it with :func:`afm_fx.load_aoti` (which checks inputs), with ``torch._inductor.aoti_load_package``, or from
    C++ with ``torch::inductor::AOTIModelPackageLoader``. It runs on processors of the kind it was compiled on.

    Args:
        program: what to compile.
        path: the package, ``*.pt2``. Missing directories are created.
        threads: threads that the generated loops run on, fixed when they are compiled; matrix products follow
            ``torch.set_num_threads`` in the serving process, so set the same number there. Where more than one thread
            shares its cores with other work, set OMP_WAIT_POLICY=passive: threads that wait spin otherwise, and the
            thread that they wait for gets no core.
        check: compare the package with torch on fresh random inputs at several batch sizes.
        force: replace an existing file.
        tolerance: largest accepted difference relative to ``max(1, |output|)``; by default that of the output's dtype.
        seed: of the random inputs.

    Raises:
        OutputExistsError: the path exists and ``force`` is not set.
        UserError: the name does not end in ``.pt2``, ``threads`` is below 1, or nothing can be written there.
        MissingPackageError: there is no C++ compiler; the message says what to install.
        ExportError: torch cannot compile the program, or the package's outputs differ from torch's.
    """
    started = time.perf_counter()
    target = Path(path)
    if target.suffix != ".pt2":
        raise UserError(f"an AOTInductor package is called *.pt2, got '{target.name}'")
    if threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    refuse_existing_file(target, force=force)
    inputs = _package_inputs(program)
    with staging_directory(target) as directory:
        staged = directory / target.name
        compiling = time.perf_counter()
        _compile(program, staged, inputs, threads)
        compiled = time.perf_counter() - compiling
        difference = _check(program, load_aoti(staged), tolerance, seed) if check else None
        size = staged.stat().st_size
        staged.replace(target)
    return AotiReport(
        path=target,
        bytes=size,
        parameters=program.parameter_count(),
        inputs=inputs,
        threads=threads,
        max_abs_difference=difference,
        checked_rows=parity_rows(program) if check else (),
        compile_seconds=compiled,
        seconds=time.perf_counter() - started,
    )


def _package_inputs(program: Program) -> tuple[PackageInput, ...]:
    """Every input tensor; dict keys as names where they are unambiguous."""
    leaves, _ = pytree.tree_flatten_with_path(example_call(program))
    tensors = [
        (path, leaf, name, batched and program.dynamic_batch)
        for (path, leaf), name, batched in zip(leaves, program.input_names, program.batched, strict=True)
        if isinstance(leaf, Tensor)
    ]
    keys = [str(path[-1].key) if isinstance(path[-1], pytree.MappingKey) else name for path, _, name, _ in tensors]
    names = keys if len(set(keys)) == len(keys) else [name for _, _, name, _ in tensors]
    return tuple(
        PackageInput(
            name,
            str(leaf.dtype).removeprefix("torch."),
            (None, *leaf.shape[1:]) if free else tuple(leaf.shape),
        )
        for name, (_, leaf, _, free) in zip(names, tensors, strict=True)
    )


def _compile(program: Program, staged: Path, inputs: tuple[PackageInput, ...], threads: int) -> None:
    _find_compiler()
    original = program.original_inputs
    typed = None if original is None else original.mapping.to_json()
    metadata = json.dumps({"threads": threads, "inputs": [asdict(each) for each in inputs], "typed": typed})
    configs: dict[str, Any] = {"cpp.threads": threads, "aot_inductor.metadata": {INPUTS_KEY: metadata}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = exported(program, unpool_bags=True)  # lookups and sums are fused into one loop, bags are calls
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


def _check(program: Program, model: AotiModel, tolerance: float | None, seed: int) -> float:
    """The largest absolute difference between package and torch at several batch sizes."""
    source = random_inputs(program)
    largest = 0.0
    for rows in parity_rows(program):
        args, kwargs = source.draw(rows, seed=seed + rows)
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        with torch.no_grad():
            expected = [leaf for leaf in pytree.tree_leaves(program(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for tensor, wanted in zip(given, model.inputs, strict=True):
                wanted.check(tensor)
            outputs = model.call(given)
        for position, (output, wanted_output) in enumerate(zip(outputs, expected, strict=True)):
            where = f"{position} at batch {rows}"
            largest = max(largest, output_difference(output.cpu(), wanted_output.cpu(), where, tolerance))
    return largest
