"""Loads AOTInductor packages and gives them batches.

A package is compiled for tensors of certain dtypes and shapes and does not look at what it is given: a wrong shape
reads foreign memory. :func:`afm_fx.export_aoti` therefore notes its inputs in the package, and they are checked here.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, FileFormatError
from afm_fx.file_inputs import file_tensors
from afm_fx.inputs import Inputs

INPUTS_KEY = "afm_fx_inputs"
"""Under which the inputs stand in the package's metadata, as JSON."""


@dataclass(frozen=True)
class PackageInput:
    """One input tensor of a package.

    Attributes:
        name: the dict key where the model takes a dict, else the argument's name.
        dtype: its dtype without "torch.".
        shape: its sizes, None for the free batch axis.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def check(self, tensor: Tensor) -> None:
        """Raises BatchError where a tensor does not fit; the message begins with "takes"."""
        shape = tuple(tensor.shape)
        fits = len(shape) == len(self.shape) and all(
            size is None or size == given for size, given in zip(self.shape, shape, strict=True)
        )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not fits or dtype != self.dtype:
            sizes = ", ".join("batch" if size is None else str(size) for size in self.shape)
            raise BatchError(
                f"takes input '{self.name}' as {self.dtype} [{sizes}], the batch holds {dtype} {list(shape)}"
            )


@dataclass(frozen=True)
class AotiModel:
    """A loaded package.

    Attributes:
        path: the package.
        inputs: its input tensors in order.
        threads: what its own loops were compiled for; matrix products follow ``torch.set_num_threads``.
        loader: torch's runner of the compiled code.
        out_spec: structure of the outputs.
        typed: how typed inputs are made of the original's (:mod:`afm_fx.input_mapping`), None for plain inputs.
    """

    path: Path
    inputs: tuple[PackageInput, ...]
    threads: int
    loader: Any
    out_spec: Any
    typed: str | None = None

    def run(self, inputs: Inputs) -> Any:
        """Runs one batch (tensor, tuple or dict); returns what the program returns.

        Ids are not compared with the tables' sizes: as in an ONNX file, only ``Program.run`` does that.

        Raises:
            BatchError: names, shapes or dtypes are not those that the package was compiled for.
        """
        try:
            tensors = self.bind(inputs)
        except BatchError as error:
            raise BatchError(f"'{self.path.name}' {error}") from error
        return pytree.tree_unflatten(self.call(tensors), self.out_spec)

    def bind(self, inputs: Inputs) -> list[Tensor]:
        """The input tensors in the package's order: by name from a dict of exactly its names, else by position.

        A package with typed inputs takes a batch of the original's too.

        Raises:
            BatchError: they do not fit; the message begins with a verb.
        """
        tensors = file_tensors(inputs, [each.name for each in self.inputs], self.typed)
        for wanted, tensor in zip(self.inputs, tensors, strict=True):
            wanted.check(tensor)
        sizes = {
            each.name: tensor.shape[0] for each, tensor in zip(self.inputs, tensors, strict=True) if None in each.shape
        }
        if len(set(sizes.values())) > 1:
            raise BatchError(f"takes one batch size, but the inputs disagree on the batch size: {sizes}")
        if 0 in sizes.values():
            raise BatchError("takes at least one row, the batch is empty")
        return [tensor.contiguous() for tensor in tensors]

    def examples(self) -> list[tuple[str, Tensor]]:
        """Name and example of every input: zeros, 2 rows where the batch size is free."""
        return [
            (
                each.name,
                torch.zeros([2 if size is None else size for size in each.shape], dtype=getattr(torch, each.dtype)),
            )
            for each in self.inputs
        ]

    def call(self, tensors: list[Tensor]) -> list[Tensor]:
        """The compiled code itself, without checks."""
        return self.loader.boxed_run(list(tensors))  # type: ignore[no-any-return]  # it empties the list it is given


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
        reason = " ".join(str(error).split())[:300]
        raise FileFormatError(f"'{file}' is damaged or not an AOTInductor package: {reason}") from error
    if INPUTS_KEY not in metadata:
        raise FileFormatError(f"'{file}' does not say what its inputs are; afm_fx.export_aoti writes packages that do")
    content = json.loads(metadata[INPUTS_KEY])
    inputs = tuple(PackageInput(each["name"], each["dtype"], tuple(each["shape"])) for each in content["inputs"])
    return AotiModel(file, inputs, int(content["threads"]), model.loader, out_spec, content["typed"])
