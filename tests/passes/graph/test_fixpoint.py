from __future__ import annotations

import itertools

import pytest
import torch
from torch.fx import GraphModule

import passes.serving.packing
from passes.graph import aten, call
from passes.graph.errors import PassError, RewriteError
from passes.graph.fixpoint import in_order, run_to_fixpoint
from passes.graph.graph_pass import GraphPass
from tests.passes.serving_checks import graph_of


class Counting(GraphPass):
    """Reports a change so many times; notes every run."""

    def __init__(self, changes: int, runs: list[str]) -> None:
        super().__init__()
        self.changes, self.runs = changes, runs

    def rewrite(self, graph_module: GraphModule) -> None:
        self.runs.append(self.name)
        if self.changes > 0:  # a node more is a change that the checks can see
            *_, before, output = graph_module.graph.nodes
            with graph_module.graph.inserting_before(output):
                made = call(graph_module.graph, aten.relu.default, before, rule=self.name)
            before.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
        self.changes -= 1


class First(Counting):
    pass


class Second(Counting):
    after = ("First",)


class Circular(Counting):
    after = ("Second",)


def graph() -> GraphModule:
    return graph_of(torch.nn.Linear(3, 3), torch.randn(2, 3).double())


def test_a_pass_runs_behind_those_it_comes_after_whatever_the_order_given():
    for given in itertools.permutations([First(0, []), Second(0, []), Circular(0, [])]):
        assert [each.name for each in in_order(given)] == ["First", "Second", "Circular"]


def test_after_a_change_the_passes_start_over_from_the_first():
    runs: list[str] = []
    run_to_fixpoint(graph(), [Second(1, runs), First(1, runs)])
    assert runs == ["First", "First", "Second", "First", "Second"]


def test_passes_that_want_to_come_after_each_other_are_named(monkeypatch):
    monkeypatch.setattr(First, "after", ("Circular",))
    with pytest.raises(PassError, match=r"First.*Second|Second.*First"):
        in_order([First(0, []), Second(0, []), Circular(0, [])])


def test_a_pass_that_never_stops_changing_the_graph_is_named():
    with pytest.raises(RewriteError, match=r"still change the graph: Second$"):
        run_to_fixpoint(graph(), [First(0, []), Second(1_000, [])])


class Breaking(Counting):
    """Tears the graph apart, then fails."""

    after = ("First",)

    def rewrite(self, graph_module: GraphModule) -> None:
        graph_module.graph.output(None)
        raise IndexError("torn")


def test_a_pass_that_fails_is_undone_alone_and_named():
    module, failed = run_to_fixpoint(graph(), [Second(2, []), Breaking(0, []), First(1, [])], strict=False)
    assert [each.name for each in failed] == ["Breaking"]
    assert "IndexError: torn" in failed[0].reason
    assert sum(node.target is aten.relu.default for node in module.graph.nodes) == 3
    with pytest.raises(RewriteError, match="Breaking failed: IndexError: torn"):
        run_to_fixpoint(graph(), [Breaking(0, []), First(1, [])])


def test_a_pass_that_never_stops_ends_the_work_and_is_named():
    module, failed = run_to_fixpoint(graph(), [First(0, []), Second(1_000, [])], strict=False)
    assert [each.name for each in failed] == ["Second"]
    assert "still change the graph" in failed[0].reason
    module(torch.randn(2, 3).double())


def test_every_pass_of_packing_comes_after_passes_that_packing_has():
    packing = {kind.__name__ for kind in vars(passes.serving.packing).values() if isinstance(kind, type)}
    wanted = {name for kind in GraphPass.__subclasses__() if kind.__name__ in packing for name in kind.after}
    assert wanted
    assert wanted <= packing
