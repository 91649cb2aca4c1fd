"""A captured model: functional ATen operators in a ``torch.fx.GraphModule``, callable like the original."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError
from passes.graph_tools import clone_graph_module, convert_dtype

Inputs = Any
"""What a model takes: one tensor, a tuple of positional inputs, or a dict of keyword inputs (or of features)."""


@dataclass(frozen=True)
class Program:
    """A trained model as a graph.

    Attributes:
        graph_module: functional ATen graph with the model's parameters; call it like the original model.
        example_args: positional example inputs, kept for re-export and for random checks.
        example_kwargs: keyword example inputs.
        batched: for every flattened input tensor, whether its axis 0 is the batch.
        dynamic_batch: whether the graph accepts any batch size.
        front_door: how the model was captured ("torch.export", "torch.fx trace, then torch.export",
            "ExportedProgram").
        single_dict_argument: whether the model takes one dict of features (a dict is then not keyword inputs).
        warnings: what a user should know about this model.
        dtype: the floating dtype that floating inputs are cast to, or None for "as given".
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
    _input_names: tuple[str, ...] = field(default=(), repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program. Takes the original model's inputs and returns what the original returns."""
        if self.dtype is not None:
            args, kwargs = self._cast((args, kwargs))
        return self.graph_module(*args, **kwargs)

    def run(self, inputs: Inputs) -> Any:
        """Runs one batch (tensor, tuple or dict) without gradients after checking that it fits.

        Raises:
            BatchError: structure, shape or dtype differ from what the model takes.
        """
        args, kwargs = self.bind(inputs)
        with torch.no_grad():
            return self(*args, **kwargs)

    def bind(self, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turns a batch into positional and keyword inputs, checking keys, shapes and dtypes.

        Raises:
            BatchError: naming the input that does not fit.
        """
        args, kwargs = normalize_inputs(inputs, self.single_dict_argument)
        self._check(args, kwargs)
        return args, kwargs

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the flattened inputs, in graph order."""
        return tuple(node.name for node in self.placeholders())

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
        """Bytes of all parameters and buffers that the graph uses, shared storage counted once."""
        tensors = [*self.graph_module.parameters(), *self.graph_module.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to(self, dtype: torch.dtype) -> Program:
        """A copy computing in another floating dtype; floating inputs are cast on the way in."""
        if not dtype.is_floating_point:
            raise BatchError(f"Program.to takes a floating dtype, got {dtype}")
        return replace(self, graph_module=convert_dtype(self.graph_module, dtype), dtype=dtype)

    def with_graph(self, graph_module: GraphModule) -> Program:
        """The same program around another graph module with the same inputs and outputs."""
        return replace(self, graph_module=graph_module)

    def clone(self) -> Program:
        """A copy with a graph of its own; parameters are shared, not copied."""
        return self.with_graph(clone_graph_module(self.graph_module))

    def dynamic_shapes(self) -> tuple[Any, ...] | None:
        """The ``dynamic_shapes`` argument for ``torch.export`` of this program's graph module."""
        if not self.dynamic_batch:
            return None
        return dynamic_shapes_for((self.example_args, self.example_kwargs), self.batched)

    def _cast(self, tree: Any) -> Any:
        def cast(leaf: Any) -> Any:
            return leaf.to(self.dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

        return pytree.tree_map(cast, tree)

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        examples, expected = pytree.tree_flatten((self.example_args, self.example_kwargs))
        if spec != expected:
            raise BatchError(_structure_message((args, kwargs), (self.example_args, self.example_kwargs)))
        sizes: dict[str, int] = {}
        for name, leaf, example, batched in zip(self.input_names, leaves, examples, self.batched, strict=True):
            if not isinstance(example, torch.Tensor):
                continue
            if not isinstance(leaf, torch.Tensor):
                raise BatchError(f"input '{name}' is a {type(leaf).__name__}, the model takes a tensor")
            shape, want = tuple(leaf.shape), tuple(example.shape)
            free_batch = batched and self.dynamic_batch
            if len(shape) != len(want) or (shape[1:] != want[1:] if free_batch else shape != want):
                shown = ("batch", *want[1:]) if free_batch else want
                raise BatchError(f"input '{name}' has shape {list(shape)}, the model takes [{_join(shown)}]")
            if leaf.dtype != example.dtype and not (self.dtype is not None and leaf.is_floating_point()):
                raise BatchError(f"input '{name}' has dtype {leaf.dtype}, the model takes {example.dtype}")
            if free_batch:
                sizes[name] = shape[0]
        if len(set(sizes.values())) > 1:
            raise BatchError(f"the inputs disagree on the batch size: {sizes}")
        if sizes and 0 in sizes.values():
            raise BatchError("the batch is empty (0 rows)")


def normalize_inputs(inputs: Inputs, single_dict_argument: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Splits a batch into positional and keyword inputs."""
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, list):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping) and not single_dict_argument:
        return (), dict(inputs)
    return (inputs,), {}


def takes_single_dict(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a dict of inputs is the model's one argument rather than its keyword arguments."""
    if not isinstance(inputs, Mapping):
        return isinstance(inputs, tuple) and len(inputs) == 1 and isinstance(inputs[0], Mapping)
    parameters = list(inspect.signature(model.forward).parameters.values())
    names = {parameter.name for parameter in parameters}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return False
    return not set(inputs) <= names


def batch_flags(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, ...]:
    """Which flattened inputs carry the batch: those whose axis 0 has the size of the first tensor's axis 0."""
    leaves = pytree.tree_leaves((args, kwargs))
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim() > 0]
    batch = sizes[0] if sizes else None
    return tuple(
        isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch for leaf in leaves
    )


def dynamic_shapes_for(
    call: tuple[tuple[Any, ...], dict[str, Any]], batched: tuple[bool, ...]
) -> tuple[Any, ...]:
    """One shared dynamic batch axis for every batched input, in the structure ``torch.export`` wants."""
    batch = torch.export.Dim("batch")
    args, kwargs = call
    leaves, spec = pytree.tree_flatten((args, kwargs))
    shapes = [
        {0: batch} if flag else ({} if isinstance(leaf, torch.Tensor) else None)
        for leaf, flag in zip(leaves, batched, strict=True)
    ]
    positional, keyword = pytree.tree_unflatten(shapes, spec)
    return (*positional, *keyword.values()) if keyword else tuple(positional)


def copy_tree(tree: Any) -> Any:
    """Detached copies of every tensor in a tree of inputs."""
    return pytree.tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else copy.copy(leaf), tree
    )


def _join(shape: tuple[Any, ...]) -> str:
    return ", ".join(str(size) for size in shape)


def _structure_message(given: Any, wanted: Any) -> str:
    given_args, given_kwargs = given
    wanted_args, wanted_kwargs = wanted
    for what, left, right in (
        ("keys", _single_dict(given_args) or given_kwargs, _single_dict(wanted_args) or wanted_kwargs),
    ):
        if left or right:
            missing, extra = sorted(set(right) - set(left)), sorted(set(left) - set(right))
            if missing or extra:
                return f"the batch has the wrong {what}: missing {missing}, unexpected {extra}"
    return (
        f"the batch has another structure than the example: {len(given_args)} positional inputs given, "
        f"{len(wanted_args)} expected; keyword inputs {sorted(given_kwargs)}, expected {sorted(wanted_kwargs)}"
    )


def _single_dict(args: tuple[Any, ...]) -> dict[str, Any]:
    return dict(args[0]) if len(args) == 1 and isinstance(args[0], Mapping) else {}
