"""Runs passes in the order that they ask for, until none of them changes the graph any more.

A pass says in its class which passes it comes after; that is all the order there is. It runs only once none of the
passes before it has anything left to do: after every change the passes start over from the first. So a pass that takes
a form away from others (a product that starts from a sum is no Linear any more) waits until these have done their work.

A pass that fails is undone and left out, where it may be: the others go on with the graph that it was given.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch.fx import GraphModule

from passes.graph.copies import clone_graph_module
from passes.graph.errors import PassError, PassPreconditionError, RewriteError
from passes.graph.graph_pass import GraphPass

MOST_CHANGES = 8
"""So many changes per pass are a sign that two passes undo each other's work."""


@dataclass(frozen=True)
class FailedPass:
    """A pass that was left out because it failed."""

    name: str
    reason: str


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


def run_to_fixpoint(
    module: GraphModule, passes: Sequence[GraphPass], *, strict: bool = True
) -> tuple[GraphModule, tuple[FailedPass, ...]]:
    """Runs the passes until none changes the graph.

    Args:
        strict: a pass that fails ends it all; otherwise it is undone and left out.

    Returns:
        The module that the last pass returned (the one given may be changed), and the passes that were left out.

    Raises:
        PassError: two passes want to come after each other, or a pass failed.
        PassPreconditionError: the graph is not what passes take, strict or not.
        RewriteError: naming the passes that still change the graph after very many changes.
    """
    ordered, changes, position, failed = in_order(passes), list[str](), 0, list[FailedPass]()
    before = None if strict else clone_graph_module(module)
    while position < len(ordered):
        name = ordered[position].name
        try:
            result = ordered[position](module)
        except PassError as error:
            if before is None or isinstance(error, PassPreconditionError):
                raise
            module, before = before, clone_graph_module(before)
            failed.append(FailedPass(name, str(error)))
            del ordered[position]
            continue
        module = result.graph_module
        if not result.modified:
            position += 1
            continue
        changes.append(name)
        if len(changes) > MOST_CHANGES * len(ordered):
            still = sorted(set(changes[-len(ordered) :]))
            endless = f"after {len(changes)} changes these passes still change the graph: {', '.join(still)}"
            if strict:
                raise RewriteError(endless)
            return module, (*failed, FailedPass(name, endless))
        position = 0
        before = None if strict else clone_graph_module(module)
    return module, tuple(failed)
