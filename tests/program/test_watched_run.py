"""Watching a run: what is seen, what is replaced, what is not computed, and where it failed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Node

import afm_fx
from afm_fx.program.watched_run import WatchedRun, node_values
from tests.graphs import Tower, tower_batch


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    return afm_fx.capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))


def names_of(program: afm_fx.Program, op: str) -> list[str]:
    return [node.name for node in program.graph_module.graph.nodes if node.op == op]


def test_every_node_is_seen_once_in_order_and_the_result_is_the_programs(program):
    seen = []
    x = torch.randn(5, 3)
    result = WatchedRun(program.graph_module, lambda node, value: seen.append(node.name)).run_flat([x])
    assert torch.equal(result[0], program.run(x))
    assert seen == [node.name for node in program.graph_module.graph.nodes if node.op != "output"]


def test_later_nodes_see_what_the_watcher_returns(program):
    first, relu, second = names_of(program, "call_function")
    x = torch.randn(5, 3)
    run = WatchedRun(program.graph_module, lambda node, value: value * 0 if node.name == first else None)
    bias = program.graph_module.get_parameter("2.bias")
    assert torch.equal(run.run_flat([x])[0], bias.expand(5, 2))
    values = node_values(program.graph_module, {first, relu, second})([x])
    assert torch.equal(values[relu], values[first].relu())


def test_nothing_is_computed_that_no_watched_node_needs(program, monkeypatch):
    first, *_ = names_of(program, "call_function")
    computed = []
    call = torch.fx.Interpreter.call_function

    def counted(self, target, args, kwargs):
        computed.append(target)
        return call(self, target, args, kwargs)

    monkeypatch.setattr(torch.fx.Interpreter, "call_function", counted)
    assert list(node_values(program.graph_module, {first})([torch.randn(5, 3)])) == [first]
    assert computed == [torch.ops.aten.linear.default]


def test_known_values_are_not_computed_again(program):
    nodes = {node.name: node for node in program.graph_module.graph.nodes}
    _, relu, second = names_of(program, "call_function")
    known: dict[Node, Any] = {}
    seen: list[str] = []
    WatchedRun(program.graph_module, known.__setitem__).run_flat([torch.randn(5, 3)])
    changed = {node: value for node, value in known.items() if node.name != second}
    changed[nodes[relu]] = torch.ones(5, 4)
    run = WatchedRun(program.graph_module, lambda node, value: seen.append(node.name))
    weight, bias = (program.graph_module.get_parameter(f"2.{name}") for name in ("weight", "bias"))
    torch.testing.assert_close(run.run_flat((), changed)[0], (weight.sum(1) + bias).expand(5, 2))
    assert seen == [second]


def test_the_node_that_failed_is_known_with_its_arguments_and_the_error_is_torchs_own():
    program = afm_fx.capture(Tower(), tower_batch(4))
    ids, dense = tower_batch(4)
    ids[1, 0] = 99
    run = WatchedRun(program.graph_module, lambda node, value: None)
    with pytest.raises(IndexError, match=r"^index out of range in self$"):
        run.run_flat([ids, dense])
    assert run.node is not None
    assert run.node.target is torch.ops.aten.embedding.default
    (_, index) = run.node.args
    assert isinstance(index, Node)
    assert 99 in run.env[index]
