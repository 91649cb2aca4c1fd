"""Selections whose mask is a constant: their shape does not depend on the data, though the operator's does.

Replaces ``reshape(masked_select(x, mask), [-1, k])`` with ``x[:, i, j, ...]``, where ``i, j, ...`` are the ``k`` places
at which the constant mask of all axes but the first is true.

DLRM's inner products of pairs are often written like that; as an index they are known to be what they are.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from passes.graph import args_of, aten, buffer, call, constant_of, is_call, rewrite_each, set_value, shape_of

RULE = "fixed selection"


def fix_selections(module: GraphModule) -> bool:
    """Rewrites every selection by a constant mask; tells whether there was any."""
    if not any(node.target is aten.masked_select.default for node in module.graph.nodes):
        return False
    changed = module.graph.eliminate_dead_code()  # what assertions asked of the sizes
    if rewrite_each(module, _as_index):
        changed = True
        module.graph.eliminate_dead_code()
        for node in module.graph.nodes:  # sizes behind were said to depend on the data
            if node.op == "call_function":
                set_value(node)
    return changed


def _as_index(module: GraphModule, node: Node) -> Node | None:
    """``reshape(masked_select(x, mask), [-1, k])`` as an index."""
    selection = node.args[0] if is_call(node, aten.reshape.default) else None
    if not is_call(selection, aten.masked_select.default):
        return None
    source, mask = args_of(selection)
    chosen, shape = constant_of(module, mask), shape_of(source)
    if chosen is None or shape is None or len(shape) < 2 or tuple(chosen.shape) != tuple(shape[1:]):
        return None
    places = chosen.detach().nonzero(as_tuple=True)
    if not len(places[0]) or list(args_of(node)[1]) != [-1, len(places[0])]:
        return None
    index = [buffer(module, f"{RULE.replace(' ', '_')}_{axis}", each, rule=RULE) for axis, each in enumerate(places)]
    return call(module.graph, aten.index.Tensor, source, [None, *index], rule=RULE, like=selection)
