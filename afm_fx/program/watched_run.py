"""Runs a graph node by node while somebody watches: the one way to look into a running program.

A watcher sees the value of every node, or of those it names, and may put another in its place. Where it names nodes,
only these and what they depend on are computed: to count ids, no product of matrices is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule, Interpreter, Node

Watcher = Callable[[Node, Any], Any]
"""Called with a node and its value; nodes that come later see what it returns instead, unless that is None."""


class WatchedRun(Interpreter):
    """Runs a graph under a watcher.

    Args:
        watch: called for every watched node but the output.
        only: names of the nodes to watch, and to stop at: the run then returns nothing. None for all nodes.
    """

    def __init__(self, module: GraphModule, watch: Watcher, *, only: Collection[str] | None = None) -> None:
        super().__init__(module)
        self.extra_traceback = False  # whoever catches an error says better what happened
        self._watch = watch
        nodes = [node for node in module.graph.nodes if node.op != "output"]
        self._watched = frozenset(nodes if only is None else (node for node in nodes if node.name in only))
        self._needed = frozenset(module.graph.nodes) if only is None else _with_inputs(self._watched)
        self.node: Node | None = None  # the node that runs, or that failed; its arguments are then in ``env``

    def run_node(self, n: Node) -> Any:
        """Runs a node that is needed, and shows it to the watcher."""
        if n not in self._needed:
            return None
        self.node = n
        value = super().run_node(n)
        if n not in self._watched:
            return value
        seen = self._watch(n, value)
        return value if seen is None else seen

    def run_flat(self, inputs: Sequence[Any], known: Mapping[Node, Any] | None = None) -> Any:
        """What the graph returns, from inputs in the order of its placeholders.

        Args:
            known: values of nodes that are not computed again, and that the watcher does not see.
        """
        returned = self.run(*inputs, initial_env=dict(known or {}), enable_io_processing=False)
        self.env = {}  # else the values live until the next run
        return returned


def node_values(module: GraphModule, names: Collection[str]) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """A function that gives what the named nodes hold, by name, for inputs in the order of the placeholders."""
    values: dict[str, Any] = {}

    def keep(node: Node, value: Any) -> None:
        values[node.name] = value

    run = WatchedRun(module, keep, only=names)

    def read(inputs: Sequence[Any]) -> dict[str, Any]:
        run.run_flat(inputs)
        read_now = dict(values)
        values.clear()
        return read_now

    return read


def _with_inputs(nodes: Collection[Node]) -> frozenset[Node]:
    """The nodes and all that they depend on."""
    needed, pending = set[Node](), list(nodes)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    return frozenset(needed)
