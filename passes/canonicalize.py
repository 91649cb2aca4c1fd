"""Canonical graphs: what later passes see of a model is its arithmetic and nothing else.

Replaces
    ``assert`` and guard nodes                      with nothing (inputs are checked at the program's door),
    ``slice(x, d, 0, size)``, ``clone(x)``,
    ``dropout`` in eval, ``cat([x])``, ``x.to(same)``  with ``x``,
    a second ``f(a, b)``                            with the first (every operator here is functional).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from passes.graph_tools import aten, finish, shape_of, value_of

_ASSERTIONS = frozenset(
    {
        aten._assert_tensor_metadata.default, aten._assert_async.msg, aten._assert_async.default,
        aten._assert_scalar.default, aten.sym_constrain_range_for_size.default, aten.sym_constrain_range.default,
    }
)  # fmt: skip

_IMPURE = frozenset({aten.rand.default, aten.randn.default, aten.bernoulli.p, aten.rand_like.default, aten.randn_like.default})


class Canonicalize(PassBase):
    """Replaces a captured graph with its canonical form: no assertions, no no-ops, no equal subexpressions."""

    def call(self, graph_module: GraphModule) -> PassResult:
        changed = _erase_assertions(graph_module)
        changed |= _erase_no_ops(graph_module)
        changed |= _merge_equal_nodes(graph_module)
        finish(graph_module)
        return PassResult(graph_module, changed)


def _erase_assertions(module: GraphModule) -> bool:
    changed = False
    for node in reversed(list(module.graph.nodes)):
        guard = node.op == "call_module" and str(node.target) == "_guards_fn"
        if guard or (node.op == "call_function" and node.target in _ASSERTIONS):
            module.graph.erase_node(node)
            changed = True
    if hasattr(module, "_guards_fn"):
        del module._guards_fn
    return changed


def _erase_no_ops(module: GraphModule) -> bool:
    changed = False
    for node in list(module.graph.nodes):
        source = _same_as(node)
        if source is not None:
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
            changed = True
    return changed


def _same_as(node: Node) -> Node | None:
    """The input that the node merely repeats, or None."""
    if node.op != "call_function" or node.target not in _NO_OPS:
        return None
    first = node.args[0]
    source = first[0] if isinstance(first, (list, tuple)) and len(first) == 1 else first
    if not isinstance(source, Node) or not _NO_OPS[node.target](node):
        return None
    before, after = value_of(source), value_of(node)
    if not (isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)):
        return None
    same = before.dtype == after.dtype and before.device == after.device and _equal_shapes(source, node)
    return source if same else None


def _equal_shapes(left: Node, right: Node) -> bool:
    one, other = shape_of(left), shape_of(right)
    return one is not None and other is not None and [str(size) for size in one] == [str(size) for size in other]


def _always(node: Node) -> bool:
    return True


def _starts_at_zero(node: Node) -> bool:
    """A slice of the same length as its input that starts at 0 with step 1 is the input."""
    start = node.args[2] if len(node.args) > 2 else 0
    step = node.args[4] if len(node.args) > 4 else 1
    return start in (0, None) and step == 1


def _is_eval(node: Node) -> bool:
    return node.args[2] is False


_NO_OPS: dict[Any, Callable[[Node], bool]] = {
    aten.slice.Tensor: _starts_at_zero,
    aten.clone.default: _always,
    aten.alias.default: _always,
    aten.detach.default: _always,
    aten.dropout.default: _is_eval,
    aten.cat.default: _always,
    aten._to_copy.default: _always,
    aten.view.default: _always,
    aten.reshape.default: _always,
    aten.expand.default: _always,
}


def _merge_equal_nodes(module: GraphModule) -> bool:
    changed = False
    seen: dict[Any, Node] = {}
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "get_attr") or node.target in _IMPURE:
            continue
        key = (node.op, node.target, _freeze(node.args), _freeze(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            module.graph.erase_node(node)
            changed = True
    return changed


def _freeze(argument: Any) -> Any:
    """A hashable picture of arguments in which ``0``, ``0.0`` and ``False`` differ."""
    if isinstance(argument, (list, tuple)):
        return (type(argument).__name__, *(_freeze(item) for item in argument))
    if isinstance(argument, dict):
        return tuple(sorted((key, _freeze(item)) for key, item in argument.items()))
    if isinstance(argument, slice):
        return ("slice", _freeze(argument.start), _freeze(argument.stop), _freeze(argument.step))
    if isinstance(argument, Node):
        return argument
    return (type(argument).__name__, repr(argument) if isinstance(argument, float) else argument)
