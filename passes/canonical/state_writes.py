"""Graphs without state: what a model writes into its buffers or its inputs while it runs is left out.

Replaces ``copy_(state, value)`` with ``value``. ``torch.export`` makes a functional graph and appends one ``copy_`` for
every buffer or input that the model changed; the outputs of a single call do not depend on them.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from passes.graph import GraphPass, aten, replace_node


class EraseStateWrites(GraphPass):
    """Replaces ``copy_(state, value)`` with ``value``, where ``state`` is a parameter, a buffer or an input.

    Attributes:
        written: after a run, the names of what was written to, in graph order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: tuple[str, ...] = ()

    def rewrite(self, graph_module: GraphModule) -> None:
        self.written = tuple(erase_state_writes(graph_module))


def erase_state_writes(module: GraphModule) -> list[str]:
    """Erases the writes into parameters, buffers and inputs.

    Returns:
        The names of what was written to, in graph order.
    """
    written: list[str] = []
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.copy_.default:
            continue
        target, value = node.args[0], node.args[1]
        if isinstance(target, Node) and isinstance(value, Node) and target.op in ("get_attr", "placeholder"):
            replace_node(node, value)
            written.append(str(target.target))
    return written
