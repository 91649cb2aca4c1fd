"""Whatever columns are asked for, in whatever shape, the nodes that assemble them give their features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.fx import Node

from passes.graph.copies import clone_graph_module
from passes.graph.nodes import aten
from passes.graph.provenance import FeatureColumns
from passes.serving.assemble import MOST_RUNS, Assembler
from tests.fast_capture import fast_capture

SIZES = (6, 24, 1)
FEATURES = sum(SIZES)
ROW, MATRIX, SCALAR = (list(range(end - size, end)) for size, end in zip(SIZES, (6, 30, 31), strict=True))


class Inputs(nn.Module):
    def forward(self, row: Tensor, matrix: Tensor, scalar: Tensor) -> tuple[Tensor, ...]:
        return row + 1, matrix + 1, scalar + 1


def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, 6), torch.randn(rows, 4, 6), torch.randn(rows)


PROGRAM = fast_capture(Inputs(), batch(3))


def assembled(wanted: np.ndarray) -> list[Node]:
    """The nodes made for features by their number, the inputs' one after the other; their values are checked."""
    module = clone_graph_module(PROGRAM.graph_module)
    columns = FeatureColumns(module)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    every = []
    for node in inputs:
        own = columns.of(node)
        assert own is not None
        every.append(own.reshape(-1))
    output = module.graph.output_node()
    assembler = Assembler(module, columns, "test")
    with module.graph.inserting_before(output):
        node = assembler.assemble(np.concatenate(every)[wanted], inputs[0])
    output.args = ((node,),)
    module.graph.lint()
    module.recompile()
    for rows in (1, 5):
        given = batch(rows)
        features = torch.cat([each.reshape(rows, -1) for each in given], 1)
        (found,) = module(*given)
        assert torch.equal(found, features[:, torch.from_numpy(wanted)])
        assert tuple(node.meta["val"].shape[1:]) == wanted.shape
    return assembler.nodes


def shapes(count: int) -> list[tuple[int, ...]]:
    """Shapes of a number of features."""
    return [(count,), (1, count), *((count // size, size) for size in range(2, count) if count % size == 0)]


@st.composite
def wanted_columns(draw: st.DrawFn) -> np.ndarray:
    """Ranges, steps and single features one after the other, in any shape."""
    pieces: list[int] = []
    for _ in range(draw(st.integers(1, 5))):
        start, length = draw(st.integers(0, FEATURES - 1)), draw(st.integers(1, 8))
        pieces += list(range(start, FEATURES, draw(st.sampled_from([1, 1, 1, 2, 6]))))[:length]
    return np.array(pieces).reshape(draw(st.sampled_from(shapes(len(pieces)))))


@settings(max_examples=100)
@given(wanted_columns())
def test_any_columns_are_those_features(wanted: np.ndarray) -> None:
    assembled(wanted)


@pytest.mark.parametrize(
    ("wanted", "targets"),
    [
        (ROW, []),
        (ROW[1:4], [aten.slice.Tensor]),
        (MATRIX[6:18], [aten.slice.Tensor, aten.reshape.default]),
        ([MATRIX[6 * row + column] for row in (1, 2) for column in (2, 3)], [aten.slice.Tensor] * 2),
        (ROW + SCALAR, [aten.reshape.default, aten.cat.default]),
        (ROW[:2] + ROW[:2], [aten.slice.Tensor, aten.cat.default]),
    ],
)
def test_what_lies_together_is_cut_in_one_piece_and_equal_pieces_once(wanted: list[int], targets: list) -> None:
    shape = (2, 2) if targets == [aten.slice.Tensor] * 2 else (len(wanted),)
    assert [node.target for node in assembled(np.array(wanted).reshape(shape))] == targets


def test_many_runs_at_one_distance_are_one_range_and_others_are_picked() -> None:
    steps = np.array([MATRIX[column] for column in range(1, 24, 2)])
    assert len(steps) > MOST_RUNS
    assert [node.target for node in assembled(steps)] == [aten.reshape.default, aten.slice.Tensor, aten.reshape.default]
    rows = np.array([MATRIX[6 * row : 6 * row + 6] for row in (2, 0, 3, 1)])
    assert [node.target for node in assembled(rows) if node.op == "call_function"] == [aten.index_select.default]


@pytest.mark.parametrize("shape", [(7,), (1, 7), (1, 1, 7)])
def test_pieces_are_joined_once_whatever_the_shape(shape: tuple[int, ...]) -> None:
    targets = [node.target for node in assembled(np.array(ROW[3:] + MATRIX[:4]).reshape(shape))]
    assert targets.count(aten.cat.default) == 1
    assert len(targets) <= 5


def test_one_piece_asked_for_many_times_is_joined_with_itself() -> None:
    targets = [node.target for node in assembled(np.array(ROW[1:3] * (MOST_RUNS + 2)))]
    assert targets[0] is aten.slice.Tensor
    assert targets.count(aten.cat.default) == 1
