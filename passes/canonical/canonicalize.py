"""Canonical graphs: what later passes see of a model is its arithmetic and nothing else.

Replaces
    ``assert`` and guard nodes                      with nothing (inputs are checked at the program's door),
    ``view(x, s)``, ``_unsafe_view(x, s)``          with ``reshape(x, s)``, which asks nothing of the memory layout,
    ``slice(x, d, 0, size)``, ``clone(x)``,
    ``dropout`` in eval, ``cat([x])``, ``x.to(same)``  with ``x``,
    ``squeeze`` of axes longer than 1               with ``squeeze`` of the others, or nothing,
    ``index_select(T, 0, ids)`` and its like        with ``embedding(T, ids)`` (:mod:`passes.canonical.row_lookups`),
    ``masked_select`` by a constant mask            with an index (:mod:`passes.canonical.fixed_selections`),
    a second ``f(a, b)``                            with the first (every operator here is functional),
    a second name of one tied tensor                with the first.

A copy for the sake of layout (``transpose(x).contiguous()``) is a no-op too once every ``view`` is a ``reshape``; only
where an operator reads the strides themselves (``as_strided``) are such copies kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.canonical.fixed_selections import fix_selections
from passes.canonical.row_lookups import unify_row_lookups
from passes.graph import (
    GraphInvariantError,
    GraphPass,
    args_of,
    aten,
    call,
    equal_sizes,
    get_attribute,
    is_random,
    replace_node,
    rewrite_each,
    same_form,
    set_value,
    shape_of,
    value_of,
)

_ASSERTIONS = frozenset(
    {
        aten._assert_tensor_metadata.default, aten._assert_async.msg, aten._assert_async.default,
        aten._assert_scalar.default, aten.sym_constrain_range_for_size.default, aten.sym_constrain_range.default,
    }
)  # fmt: skip

_UNINITIALIZED = frozenset(
    {
        aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default,
        aten.new_empty_strided.default, aten.empty_permuted.default,
    }
)  # fmt: skip

_READS_STRIDES = frozenset({aten.as_strided.default, aten.view.dtype, aten.view_as_real.default})

RULE = "squeeze"

_RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default})


class Canonicalize(GraphPass):
    """Replaces a captured graph with its canonical form: no assertions, no no-ops, no equal subexpressions."""

    after = ("FoldConstants",)
    """What was folded may be equal to something else, or leave a no-op behind."""

    retargets: ClassVar[Mapping[Any, Any]] = dict.fromkeys(_RESHAPES, aten.reshape.default)

    def requires(self, graph_module: GraphModule) -> None:
        """The graph is functional, well formed, and every node has the right value.

        Raises:
            GraphInvariantError: a node changes one of its inputs, or naming the node that is wrong.
        """
        for node in graph_module.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
                raise GraphInvariantError(
                    f"it takes functional graphs, but node '{node.name}' ({node.target}) changes its input"
                )
        super().requires(graph_module)

    def rewrite(self, graph_module: GraphModule) -> None:
        graph_module.graph.eliminate_dead_code()
        _erase_assertions(graph_module)
        _free_from_layout(graph_module)
        fix_selections(graph_module)
        rewrite_each(graph_module, _without_idle_axes)
        _erase_no_ops(graph_module)
        unify_row_lookups(graph_module)
        _merge_equal_nodes(graph_module)


def _erase_assertions(module: GraphModule) -> None:
    for node in reversed(list(module.graph.nodes)):
        guard = node.op == "call_module" and str(node.target) == "_guards_fn"
        if guard or (node.op == "call_function" and node.target in _ASSERTIONS):
            module.graph.erase_node(node)
    if hasattr(module, "_guards_fn"):
        del module._guards_fn


def _free_from_layout(module: GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _RESHAPES:
            node.target = aten.reshape.default


def _without_idle_axes(_: GraphModule, node: Node) -> Node | None:
    """``squeeze`` without named axes that are longer than 1: torch lets them pass, other runtimes refuse them."""
    if node.target not in (aten.squeeze.dim, aten.squeeze.dims):
        return None
    source, named = args_of(node)
    shape, axes = shape_of(source) or (), [named] if isinstance(named, int) else named
    kept = [axis for axis in axes if not shape or not isinstance(shape[axis], int) or shape[axis] == 1]
    if kept == list(axes):
        return None
    if not kept:
        return call(node.graph, aten.clone.default, source, rule=RULE, like=node)
    return call(node.graph, aten.squeeze.dims, source, kept, rule=RULE, like=node)


def _erase_no_ops(module: GraphModule) -> None:
    layout_matters = any(node.target in _READS_STRIDES for node in module.graph.nodes)
    stale = False
    for node in list(module.graph.nodes):
        if stale and node.op == "call_function":
            set_value(node)
        source = _same_as(node)
        if source is None or (layout_matters and not _equal_layouts(source, node)):
            continue
        # From here on, values downstream have the source's strides; shapes and dtypes are the same.
        stale |= not _equal_layouts(source, node)
        replace_node(node, source)


def _same_as(node: Node) -> Node | None:
    """The input that the node merely repeats, or None."""
    if node.op != "call_function" or node.target not in _NO_OPS or any(user.op == "output" for user in node.users):
        return None  # an output stays a tensor of its own, never an input or a parameter
    first = node.args[0]
    source = first[0] if isinstance(first, (list, tuple)) and len(first) == 1 else first
    drops = node.target is aten.dropout.default and node.args[2:] != (False,)
    if not isinstance(source, Node) or drops:
        return None
    before, after = value_of(source), value_of(node)
    if not same_form(source, node) or (before.device, before.layout) != (after.device, after.layout):
        return None
    return source


def _equal_layouts(left: Node, right: Node) -> bool:
    return equal_sizes(value_of(left).stride(), value_of(right).stride())


_NO_OPS = frozenset(
    {
        aten.slice.Tensor, aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
        aten.dropout.default, aten.cat.default, aten._to_copy.default, aten.reshape.default, aten.expand.default,
    }
)  # fmt: skip
"""Operators that repeat their input where its shape and number format stay (a slice that leaves nothing out)."""


def _merge_equal_nodes(module: GraphModule) -> None:
    seen: dict[Any, Node] = {}
    for node in list(module.graph.nodes):
        key = _identity(module, node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            replace_node(node, first)


def _identity(module: GraphModule, node: Node) -> Any:
    """What the node computes, as a hashable picture; None where a second evaluation may give something else."""
    if node.op == "get_attr":
        return ("get_attr", id(get_attribute(module, str(node.target))))
    if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    mutable = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    if mutable or is_random(node) or node.target in _UNINITIALIZED:
        return None
    leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
    # Numbers by what they are written as: ``0``, ``0.0``, ``-0.0`` and ``False`` are equal, but not the same argument.
    return (node.target, repr(structure), *(leaf if isinstance(leaf, Node) else repr(leaf) for leaf in leaves))
