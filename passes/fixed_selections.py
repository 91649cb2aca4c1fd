"""Selections whose mask is a constant: their shape does not depend on the data, though the operator's does.

Replaces ``reshape(masked_select(x, mask), [-1, k])`` with ``x[:, i, j, ...]``, where ``i, j, ...`` are the ``k`` places
at which the constant mask of all axes but the first is true.

DLRM's inner products of pairs are often written like that; as an index they are known to be what they are.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from passes.graph_tools import aten, buffer, call, constant_of, set_value, shape_of

RULE = "fixed selection"


def fix_selections(module: GraphModule) -> bool:
    """Rewrites every selection by a constant mask; tells whether there was any."""
    found = [node for node in module.graph.nodes if node.target is aten.masked_select.default]
    changed = bool(found) and module.graph.eliminate_dead_code()  # what assertions asked of the sizes
    fixed = False
    for node in found:
        fixed |= _fix(module, node)
    if fixed:
        module.graph.eliminate_dead_code()
        for node in module.graph.nodes:  # sizes behind were said to depend on the data
            if node.op == "call_function":
                set_value(node)
    return changed or fixed


def _fix(module: GraphModule, node: Node) -> bool:
    source, mask = node.args[0], node.args[1]
    if not isinstance(source, Node) or not isinstance(mask, Node):
        return False
    chosen, shape = constant_of(module, mask), shape_of(source)
    if chosen is None or shape is None or len(shape) < 2 or tuple(chosen.shape) != tuple(shape[1:]):
        return False
    places = chosen.detach().nonzero(as_tuple=True)
    width = len(places[0])
    readers = [user for user in node.users if _by_row(user, width)]
    if not width or len(readers) < len(node.users):
        return False
    index = [buffer(module, f"{RULE.replace(' ', '_')}_{axis}", each, rule=RULE) for axis, each in enumerate(places)]
    for reader in readers:
        with module.graph.inserting_before(reader):
            picked = call(module.graph, aten.index.Tensor, source, [None, *index], rule=RULE, like=node)
        reader.replace_all_uses_with(picked)
        module.graph.erase_node(reader)
    module.graph.erase_node(node)
    return True


def _by_row(user: Node, width: int) -> bool:
    """Whether a reader sees the selection as [batch, width]."""
    if user.target is not aten.reshape.default:
        return False
    sizes = user.args[1]
    return isinstance(sizes, (list, tuple)) and list(sizes) == [-1, width]
