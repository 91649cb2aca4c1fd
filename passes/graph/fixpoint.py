"""Runs passes in the order that they ask for, until none of them changes the graph any more.

A pass says in its class which passes it comes after; that is all the order there is. It runs only once none of the
passes before it has anything left to do: after every change the passes start over from the first. So a pass that takes
a form away from others (a product that starts from a sum is no Linear any more) waits until these have done their work.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Sequence

from torch.fx import GraphModule

from passes.graph.errors import PassError, RewriteError
from passes.graph.graph_pass import GraphPass

MOST_CHANGES = 8
"""So many changes per pass are a sign that two passes undo each other's work."""


def in_order(passes: Iterable[GraphPass]) -> list[GraphPass]:
    """The passes, each behind those that it comes after; passes that do not care stay as they are given.

    Raises:
        PassError: two passes want to come after each other.
    """
    given = {each.name: each for each in passes}
    wanted = {name: [other for other in each.after if other in given] for name, each in given.items()}
    try:
        return [given[name] for name in graphlib.TopologicalSorter(wanted).static_order()]
    except graphlib.CycleError as error:
        raise PassError(f"these passes want to come after one another: {' -> '.join(error.args[1])}") from error


def run_to_fixpoint(module: GraphModule, passes: Sequence[GraphPass]) -> GraphModule:
    """Runs the passes until none changes the graph.

    Returns:
        The module that the last pass returned; the one given may be changed.

    Raises:
        PassError: two passes want to come after each other, or a pass failed.
        RewriteError: naming the passes that still change the graph after very many changes.
    """
    ordered, changes, position = in_order(passes), list[str](), 0
    while position < len(ordered):
        result = ordered[position](module)
        module = result.graph_module
        if not result.modified:
            position += 1
            continue
        changes.append(ordered[position].name)
        if len(changes) > MOST_CHANGES * len(ordered):
            still = sorted(set(changes[-len(ordered) :]))
            raise RewriteError(f"after {len(changes)} changes these passes still change the graph: {', '.join(still)}")
        position = 0
    return module
