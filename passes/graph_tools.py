"""Small tools for editing ATen graphs: nodes that carry their ``meta["val"]``, parameters, copies.

Every node that a pass creates goes through :func:`call` or :func:`parameter`, so that its value (shape and dtype,
symbolic in the batch) and its provenance are right by construction.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

PROVENANCE = "afm_fx"
"""Key in ``node.meta`` under which a pass says which rule made a node."""

aten = torch.ops.aten

Copied = TypeVar("Copied")


def clone_graph_module(module: GraphModule) -> GraphModule:
    """A graph module with a graph of its own that shares the parameters it uses with the original.

    Parameters that the graph does not reach are left behind.
    """
    clone = GraphModule(module, _copy(module.graph), class_name=type(module).__name__)
    clone.eval()
    return clone


def _copy(thing: Copied) -> Copied:
    """A deep copy. Copying the structure of a graph's inputs makes torch warn about a class of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        return copy.deepcopy(thing)


def fake_mode(graph: Graph) -> FakeTensorMode:
    """The fake tensor mode in which the graph's values live (a fresh one for a graph without values)."""
    for node in graph.nodes:
        for leaf in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(leaf, torch._subclasses.FakeTensor):
                return leaf.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def value_of(node: Node) -> Any:
    """The node's fake value."""
    return node.meta.get("val")


def shape_of(node: Node) -> tuple[Any, ...] | None:
    """The node's shape (ints and symbols), None where it is not one tensor."""
    value = value_of(node)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def get_attribute(module: nn.Module, target: str) -> Any:
    """The tensor at a dotted name."""
    for part in target.split("."):
        module = getattr(module, part)
    return module


def constant_of(module: GraphModule, node: Any) -> torch.Tensor | None:
    """The tensor behind a ``get_attr`` node, or None."""
    if isinstance(node, Node) and node.op == "get_attr":
        attribute = get_attribute(module, str(node.target))
        return attribute if isinstance(attribute, torch.Tensor) else None
    return None


def call(
    graph: Graph, target: Callable[..., Any], *args: Any, rule: str, like: Node | None = None, **kwargs: Any
) -> Node:
    """Creates a call node at the graph's insertion point with its value computed and its maker recorded.

    Args:
        rule: the rule that makes the node, kept in ``node.meta["afm_fx"]``.
        like: the node it stands for; its stack trace is taken over.
    """
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = compute_value(node)
    stamp(node, rule, like)
    return node


def stamp(node: Node, rule: str, like: Node | None = None) -> None:
    """Records which rule made a node and takes over the source position of the node it stands for."""
    node.meta[PROVENANCE] = rule
    for key in ("stack_trace", "nn_module_stack"):
        if like is not None and key in like.meta:
            node.meta[key] = like.meta[key]


def compute_value(node: Node) -> Any:
    """The node's value from its arguments' values, in the graph's fake mode.

    Composite operators take torch's Python decompositions: the ones in C++ compare sizes (``pad`` does), which would
    fix the symbolic batch to the example's, here and in every graph that shares the symbol.
    """
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta.get("val"))
    with fake_mode(node.graph), enable_python_dispatcher(), torch.no_grad():
        return cast(Callable[..., Any], node.target)(*args, **kwargs)


def parameter(module: GraphModule, name: str, tensor: torch.Tensor, *, rule: str, trainable: bool = True) -> Node:
    """Registers a parameter under a dotted name (made unique) and returns its ``get_attr`` node.

    The node is placed at the graph's start so that it is available everywhere.
    """
    name = _unique_attribute(module, _below_modules(module, name))
    owner: nn.Module = module
    *parents, leaf = name.split(".")
    for part in parents:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=trainable and tensor.is_floating_point()))
    graph = module.graph
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        node = graph.get_attr(name)
    mode = fake_mode(graph)
    node.meta["val"] = mode.from_tensor(get_attribute(module, name), static_shapes=True)
    stamp(node, rule)
    return node


def _below_modules(module: nn.Module, name: str) -> str:
    """The dotted name with every parent that names a parameter replaced by one that is free to hold modules."""
    *parents, leaf = name.split(".")
    owner: nn.Module | None = module
    path: list[str] = []
    for part in parents:
        names = itertools.chain([part], (f"{part}_{suffix}" for suffix in itertools.count(1)))
        free = next(each for each in names if isinstance(getattr(owner, each, None), nn.Module | None))
        owner = getattr(owner, free, None)
        path.append(free)
    return ".".join([*path, leaf])


def _unique_attribute(module: nn.Module, name: str) -> str:
    for suffix in itertools.count():
        candidate = name if suffix == 0 else f"{name}_{suffix}"
        try:
            get_attribute(module, candidate)
        except AttributeError:
            return candidate
    raise AssertionError  # unreachable: itertools.count never ends


def finish(module: GraphModule) -> GraphModule:
    """Removes dead nodes, checks the graph, regenerates its code, drops parameters nothing uses."""
    module.graph.eliminate_dead_code()
    module.graph.lint()
    drop_unused_state(module)
    module.recompile()
    return module


def drop_unused_state(module: GraphModule) -> None:
    """Deletes parameters, buffers and empty submodules that no ``get_attr`` node names."""
    used = {str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
    for prefix, owner in list(module.named_modules()):
        for store in (owner._parameters, owner._buffers):
            for leaf in list(store):
                if (f"{prefix}.{leaf}" if prefix else leaf) not in used:
                    del store[leaf]
    _drop_empty_children(module, "", used)


def _drop_empty_children(owner: nn.Module, prefix: str, used: Iterable[str]) -> None:
    for name, child in list(owner.named_children()):
        path = f"{prefix}.{name}" if prefix else name
        _drop_empty_children(child, path, used)
        empty = not (child._parameters or child._buffers or child._modules)
        if path not in used and empty and not _holds_constant(owner, name, used, path):
            delattr(owner, name)


def _holds_constant(owner: nn.Module, name: str, used: Iterable[str], path: str) -> bool:
    return any(target.startswith(f"{path}.") for target in used)


def convert_dtype(module: GraphModule, dtype: torch.dtype) -> GraphModule:
    """A copy of the module that computes in another floating dtype, state and dtype arguments alike."""
    clone = clone_graph_module(module)
    old = {
        tensor.dtype for tensor in itertools.chain(clone.parameters(), clone.buffers()) if tensor.is_floating_point()
    }
    clone = _copy(clone).to(dtype)
    for node in clone.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = pytree.tree_map(
                lambda leaf: dtype if isinstance(leaf, torch.dtype) and leaf in old else leaf, (node.args, node.kwargs)
            )
    for node in clone.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                node.meta["val"] = value.to(dtype)
        elif node.op == "get_attr":
            value = get_attribute(clone, str(node.target))
            if isinstance(value, torch.Tensor) and node.meta.get("val") is not None:
                node.meta["val"] = node.meta["val"].to(value.dtype)
        elif node.op == "call_function":
            node.meta["val"] = compute_value(node)
    clone.recompile()
    return clone
