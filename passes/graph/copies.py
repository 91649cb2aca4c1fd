"""Copies of graph modules: with a graph of their own over the same parameters, or in another number format."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from passes.graph.nodes import get_attribute
from passes.graph.values import compute_value

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


def convert_dtype(module: GraphModule, dtype: torch.dtype) -> GraphModule:
    """A copy of the module that computes in another floating dtype, state and dtype arguments alike."""
    clone = clone_graph_module(module)
    old = {
        tensor.dtype for tensor in itertools.chain(clone.parameters(), clone.buffers()) if tensor.is_floating_point()
    }
    clone = _copy(clone).to(dtype)
    _convert_graph(clone, old, dtype)
    return clone


def _convert_graph(module: GraphModule, old: Collection[torch.dtype], dtype: torch.dtype) -> None:
    """Converts dtype arguments and values of a graph whose state is converted, and of the graphs that it runs."""

    def converted(leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype):
            return dtype if leaf in old else leaf
        return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.dtype in old else leaf

    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = pytree.tree_map(
                lambda leaf: converted(leaf) if isinstance(leaf, torch.dtype) else leaf, (node.args, node.kwargs)
            )
    for node in module.graph.nodes:
        value, known = get_attribute(module, str(node.target)) if node.op == "get_attr" else None, node.meta.get("val")
        if isinstance(value, GraphModule):
            _convert_graph(value, old, dtype)
        elif isinstance(value, torch.Tensor) and known is not None:
            node.meta["val"] = known.to(value.dtype)
        elif node.op == "placeholder" and isinstance(known, torch.Tensor) and known.is_floating_point():
            node.meta["val"] = known.to(dtype)
        elif node.op == "call_function":
            inner = isinstance(node.target, torch._ops.HigherOrderOperator)
            node.meta["val"] = pytree.tree_map(converted, known) if inner else compute_value(node)
    module.recompile()
