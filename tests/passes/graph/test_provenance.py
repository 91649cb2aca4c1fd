"""Columns name the features that a tensor holds: each is looked up again where its source has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

import afm_fx
from afm_fx.program.watched_run import WatchedRun
from passes.graph.nodes import aten
from passes.graph.provenance import FeatureColumns, IdColumn
from tests.fast_capture import fast_capture

Function = Callable[[Tensor, Tensor], Any]

TRACED: dict[str, Function] = {
    "joined and split unevenly": lambda x, y: torch.split(torch.cat([x, y], 1), [1, 5, 4], 1),
    "chunks, the second of them joined again": lambda x, y: torch.cat([torch.chunk(x, 3, 1)[1], y], 1),
    "unbound and stacked in another order": lambda x, y: torch.stack(torch.unbind(y, 1)[::-1], 1),
    "sliced and selected": lambda x, y: torch.cat([x[:, 1:5:2], y[:, -1:], x.select(1, 2).unsqueeze(1)], 1),
    "the second feature axis joined": lambda x, y: torch.cat([x.view(-1, 2, 3), y.view(-1, 2, 2)], 2).flatten(1),
    "axes of one element exchanged": lambda x, y: x.unsqueeze(1).transpose(1, 2).permute(0, 2, 1),
}
"""What only moves features; the second is made of parts of what a node with several results gives."""

SOURCES: dict[str, tuple[Function, Any]] = {
    "axes of several elements exchanged": (lambda x, y: x.view(-1, 2, 3).transpose(1, 2), aten.transpose.int),
    "picked": (lambda x, y: x.flip(1), aten.flip.default),
    "computed": (lambda x, y: torch.relu(x), aten.relu.default),
    "two number formats joined": (lambda x, y: torch.cat([x, y.double()], 1), aten.cat.default),
    "a row's features of another row": (lambda x, y: torch.cat([x[1:], x[:1]], 0), aten.cat.default),
}
"""What the tracing stops at: its result is numbered anew."""


class Of(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


def captured(function: Function) -> afm_fx.Program:
    return fast_capture(Of(function), batch(4))


def batch(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 6), torch.randn(rows, 4)


def values_of(program: afm_fx.Program, inputs: tuple[Tensor, Tensor]) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def see(node: Node, value: Any) -> Any:
        seen[node.name] = value
        return value

    WatchedRun(program.graph_module, see).run_flat(pytree.tree_leaves(program.bind(inputs)))
    return seen


def results(program: afm_fx.Program) -> list[Node]:
    return pytree.tree_leaves(program.graph_module.graph.output_node().args)


@pytest.mark.parametrize("function", (TRACED | {name: each for name, (each, _) in SOURCES.items()}).values())
def test_every_column_is_where_its_source_has_it(function: Function) -> None:
    program = captured(function)
    columns, seen = FeatureColumns(program.graph_module), values_of(program, batch(5))
    for node in program.graph_module.graph.nodes:
        traced = columns.of(node)
        if traced is None or node.name not in seen:
            continue
        assert traced.shape == seen[node.name].shape[1:]
        for column, feature in zip(traced.reshape(-1), seen[node.name].reshape(5, -1).T, strict=True):
            source, place = columns.source(int(column))
            assert torch.equal(seen[source.name].reshape(5, -1)[:, place], feature)


@pytest.mark.parametrize("function", TRACED.values(), ids=TRACED)
def test_moved_features_come_from_the_inputs_alone(function: Function) -> None:
    program = captured(function)
    columns = FeatureColumns(program.graph_module)
    for node in results(program):
        traced = columns.of(node)
        assert traced is not None
        assert columns.is_move(node)
        assert {columns.source(int(column))[0].op for column in traced.reshape(-1)} == {"placeholder"}


@pytest.mark.parametrize(("function", "target"), SOURCES.values(), ids=SOURCES)
def test_what_does_more_than_move_features_is_a_source(function: Function, target: Any) -> None:
    program = captured(function)
    columns, (node,) = FeatureColumns(program.graph_module), results(program)
    traced = columns.of(node)
    assert traced is not None
    assert not columns.is_move(node)
    assert {columns.source(int(column))[0].target for column in traced.reshape(-1)} == {target}


def test_what_has_no_batch_in_front_has_no_columns() -> None:
    program = captured(lambda x, y: x.t())
    columns, (node,) = FeatureColumns(program.graph_module), results(program)
    assert columns.of(node) is None
    assert not columns.is_move(node)


def test_ids_are_traced_through_casts_and_constants_of_one_or_of_every_field() -> None:
    offsets = torch.tensor([0, 10, 20])
    program = afm_fx.capture(Of(lambda x, y: x[:, :3].long() + 2 + offsets), batch(4))
    columns, (node,) = FeatureColumns(program.graph_module), results(program)
    start = columns.of(program.placeholders()[0])
    assert start is not None
    assert columns.ids(node) == tuple(IdColumn(int(start[field]), 2 + 10 * field) for field in range(3))
    assert columns.ids(program.placeholders()[0]) is None  # no integers
