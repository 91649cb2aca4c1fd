"""A captured model: functional ATen operators in a ``torch.fx.GraphModule``, callable like the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, UserError
from afm_fx.program.batch import Batch
from afm_fx.program.diagnosis import explained_failure
from afm_fx.program.input_mapping import InputMapping, OriginalInputs, refuse_ids_outside
from afm_fx.program.inputs import Inputs, align_inputs, dynamic_shapes_for, normalize_inputs
from afm_fx.program.recipe import Recipe
from passes.graph import clone_graph_module, convert_dtype
from passes.sites import IdBound, site_name

__all__ = ["Inputs", "Program"]


@dataclass(frozen=True)
class Program:
    """A trained model as a graph.

    Attributes:
        graph_module: functional ATen graph with the model's parameters; call it like the original model.
        example_args: positional example inputs, kept for re-export and for random checks.
        batched: for every flattened input tensor, whether its axis 0 is the batch.
        front_door: how the model was captured ("torch.export", "torch.fx trace, then torch.export",
            "ExportedProgram").
        single_dict_argument: whether the model takes one dict of features (a dict is then not keyword inputs).
        dtype: the floating dtype that floating inputs are cast to, or None for "as given".
        id_bounds: the valid ids of input columns that read packed tables, where nothing else would notice others.
        original_inputs: for a program with typed inputs, what it took before and how that is converted.
        recipe: what was done to the captured model; exported files carry it.
    """

    graph_module: GraphModule
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any]
    batched: tuple[bool, ...]
    dynamic_batch: bool = True
    front_door: str = "torch.export"
    single_dict_argument: bool = False
    warnings: tuple[str, ...] = ()
    dtype: torch.dtype | None = None
    id_bounds: tuple[IdBound, ...] = ()
    original_inputs: OriginalInputs | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program. Takes the original model's inputs and returns what the original returns.

        Raises:
            BatchError: an input that is not a tensor differs from the value that the graph was captured with.
        """
        if kwargs:
            kwargs = {**{name: kwargs[name] for name in self.example_kwargs if name in kwargs}, **kwargs}
        self._check_constants(args, kwargs)
        args, kwargs = self.cast_inputs((args, kwargs))
        return self.graph_module(*args, **kwargs)

    def run(self, inputs: Inputs) -> Any:
        """Runs one batch (tensor, tuple or dict) without gradients after checking that it fits.

        Raises:
            BatchError: structure, shape or dtype differ from what the model takes, or an id is outside its table.
        """
        args, kwargs = self.bind(inputs)
        self._check_ids(args, kwargs)
        batch = Batch(0, 0, pytree.tree_leaves((args, kwargs)))
        with torch.no_grad(), explained_failure(self, batch, only_ids=True):
            return self(*args, **kwargs)

    def bind(self, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turns a batch into positional and keyword inputs, checking keys, shapes and dtypes.

        Raises:
            BatchError: naming the input that does not fit.
        """
        args, kwargs = normalize_inputs(inputs, self.single_dict_argument)
        try:
            args, kwargs = align_inputs(args, kwargs, self.example_args, self.example_kwargs)
            self._check(args, kwargs)
        except BatchError as error:
            if self.original_inputs is None:
                raise
            names = ", ".join(self.example_kwargs)
            raise BatchError(
                f"{error}; this program takes typed inputs ({names}), Program.convert_inputs makes them from the "
                "original's"
            ) from error
        return args, kwargs

    def convert_inputs(self, inputs: Inputs) -> dict[str, Any]:
        """Makes a batch of typed inputs from a batch of the original's inputs (tensor, tuple or dict).

        The matrix that carries ids may come in any number format: float64 or int64 keep ids beyond 2^24 apart, while
        those of a float32 matrix are rounded already.

        Returns:
            The inputs by name, for :meth:`run`: ids int64 ``[batch, ids]``, features ``[batch, features]``.

        Raises:
            BatchError: the program has no typed inputs, the batch does not fit the original, or a column of ids
                holds a number that is not whole or an id outside its table; row and column are named.
        """
        if self.original_inputs is None:
            raise BatchError("this program takes the original's inputs as they are, there is nothing to convert")
        return self.original_inputs.convert(inputs, self.dtype)

    @property
    def example_leaves(self) -> list[Any]:
        """The flattened example inputs, in graph order."""
        return pytree.tree_leaves((self.example_args, self.example_kwargs))

    @property
    def example_rows(self) -> int | None:
        """Rows of the example batch, None where no input carries a batch."""
        batched = (leaf for leaf, flag in zip(self.example_leaves, self.batched, strict=True) if flag)
        return next((leaf.shape[0] for leaf in batched), None)

    def file_mapping(self) -> InputMapping | None:
        """How the typed inputs of an exported file are made of the original's; None for plain inputs."""
        if self.original_inputs is None:
            return None
        return self.original_inputs.mapping.with_floats(self.dtype).tensors_only()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the flattened inputs, in graph order."""
        return tuple(node.name for node in self.placeholders())

    def leaf_names(self) -> tuple[str, ...]:
        """Names of the flattened inputs in an exported file: the dict's key where there is one, else the graph's."""
        leaves = pytree.tree_leaves_with_path((self.example_args, self.example_kwargs))
        names: list[str] = []
        for (key_path, _), name in zip(leaves, self.input_names, strict=True):
            names.append(unique_name(dict_key(key_path) or name, names))
        return tuple(names)

    def placeholders(self) -> list[Node]:
        """The graph's input nodes, in the order of the flattened inputs."""
        return [node for node in self.graph_module.graph.nodes if node.op == "placeholder"]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the graph uses, each once."""
        return self.graph_module.parameters()

    def parameter_count(self) -> int:
        """Number of scalar parameters that the graph uses, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state_bytes(self) -> int:
        """Bytes of all parameters, buffers and constants that the graph uses, shared ones counted once."""
        tensors = [*self.graph_module.parameters(), *self.graph_module.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to(self, dtype: torch.dtype) -> Program:
        """A copy computing in another floating dtype; floating inputs are cast on the way in."""
        if not dtype.is_floating_point:
            raise BatchError(f"Program.to takes a floating dtype, got {dtype}")
        recipe = self.recipe.then("dtype", dtype=str(dtype).removeprefix("torch."))
        return replace(self, graph_module=convert_dtype(self.graph_module, dtype), dtype=dtype, recipe=recipe)

    def with_graph(self, graph_module: GraphModule) -> Program:
        """The same program around another graph module with the same inputs and outputs."""
        return replace(self, graph_module=graph_module)

    def clone(self) -> Program:
        """A copy with a graph of its own; parameters are shared, not copied."""
        return self.with_graph(clone_graph_module(self.graph_module))

    def dynamic_shapes(self) -> dict[str, Any] | None:
        """The ``dynamic_shapes`` argument for ``torch.export`` of this program's graph module."""
        if not self.dynamic_batch:
            return None
        return dynamic_shapes_for(self.graph_module, self.example_args, self.example_kwargs, self.batched)

    def cast_inputs(self, tree: Any) -> Any:
        """A tree of inputs, the floating tensors in it in the program's dtype where it has one of its own."""

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

        return tree if self.dtype is None else pytree.tree_map_only(torch.Tensor, cast, tree)

    def _check_constants(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        examples = self.example_leaves
        if all(isinstance(example, torch.Tensor) for example in examples):
            return
        leaves = pytree.tree_leaves((args, kwargs))
        for name, leaf, example in zip(self.input_names, leaves, examples, strict=False):
            if not isinstance(example, torch.Tensor) and (isinstance(leaf, torch.Tensor) or leaf != example):
                given = "a tensor" if isinstance(leaf, torch.Tensor) else repr(leaf)
                raise BatchError(
                    f"input '{name}' is {given}, but the model was captured with {example!r}: an input that is "
                    "not a tensor is part of the graph. Capture again with the other value, or pass it as a tensor"
                )

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._check_constants(args, kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        sizes: dict[str, int] = {}
        for name, leaf, example, batched in zip(
            self.input_names, leaves, self.example_leaves, self.batched, strict=True
        ):
            if not isinstance(example, torch.Tensor):
                continue
            if not isinstance(leaf, torch.Tensor):
                raise BatchError(f"input '{name}' is a {type(leaf).__name__}, the model takes a tensor")
            free_batch = batched and self.dynamic_batch
            self._check_tensor(name, leaf, example, free_batch)
            if free_batch:
                sizes[name] = leaf.shape[0]
        if len(set(sizes.values())) > 1:
            raise BatchError(f"the inputs disagree on the batch size: {sizes}")
        if 0 in sizes.values():
            raise BatchError("the batch is empty (0 rows)")

    def _check_ids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A lookup in a packed table would not notice an id outside the table that it was made for."""
        leaves = dict(zip(self.input_names, pytree.tree_leaves((args, kwargs)), strict=True))
        for bound in self.id_bounds:
            given = leaves[bound.input]
            ids = given.reshape(given.shape[0], -1)[:, bound.column]
            field = f"input '{bound.input}', column {bound.column}"
            refuse_ids_outside(ids, field, site_name(bound.table), bound.low, bound.high - 1)

    def _check_tensor(self, name: str, given: torch.Tensor, example: torch.Tensor, free_batch: bool) -> None:
        shape, want = tuple(given.shape), tuple(example.shape)
        if len(shape) != len(want) or (shape[1:] != want[1:] if free_batch else shape != want):
            shown = ("batch", *want[1:]) if free_batch else want
            sizes = ", ".join(map(str, shown))
            raise BatchError(f"input '{name}' has shape {list(shape)}, the model takes [{sizes}]")
        cast = self.dtype is not None and given.is_floating_point() and example.is_floating_point()
        if given.dtype != example.dtype and not cast:
            raise BatchError(f"input '{name}' has dtype {given.dtype}, the model takes {example.dtype}")


def require_program(given: object, call: str) -> None:
    """Refuses something else where a program is taken, and says the right call.

    Args:
        call: the function that takes it, as users write it.

    Raises:
        UserError: the thing given is no program.
    """
    if isinstance(given, Program):
        return
    kind = type(given).__name__
    if isinstance(getattr(given, "program", None), Program):
        advice = "pass its .program"
    elif isinstance(given, torch.export.ExportedProgram):
        advice = "program = afm_fx.capture(exported_program)"
    else:
        advice = "program = afm_fx.capture(model, example_inputs), where the example is one batch of at least 2 rows"
    raise UserError(f"{call} takes a captured program, got {kind}: {advice}")


def dict_key(key_path: tuple[Any, ...]) -> str:
    """The dict key that a leaf of inputs or outputs stands under, empty where it stands under none."""
    last = key_path[-1] if key_path else None
    return str(last.key) if isinstance(last, pytree.MappingKey) else ""


def unique_name(name: str, taken: Sequence[str]) -> str:
    """The name, with a number behind it where it is taken."""
    suffix, candidate = 1, name
    while candidate in taken:
        candidate, suffix = f"{name}_{suffix}", suffix + 1
    return candidate
