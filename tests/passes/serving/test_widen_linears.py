from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes.graph import clone_graph_module
from passes.serving.collapse_moves import CollapseMoves
from passes.serving.pack_tables import PackTables
from passes.serving.widen_linears import WidenLinears
from tests.passes.serving_checks import graph_of, operators, rewritten

WIDTHS = (2, 3, 1, 4, 2, 3)


class Pieces(nn.Module):
    """A Linear that reads a piece of every field, one of them twice, and what stands beside them."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(sum(WIDTHS) + WIDTHS[0] + 3, outputs)

    def forward(self, fields: Tensor, dense: Tensor) -> Tensor:
        pieces = [fields[:, field, :width] for field, width in enumerate(WIDTHS)]
        return self.first(torch.cat([*pieces, dense, pieces[0]], 1)).relu()


def fields(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 6, 4, dtype=torch.float64), torch.randn(rows, 3, dtype=torch.float64)


def test_a_narrow_linear_reads_all_fields_whole_with_zero_weights_between():
    result = rewritten(graph_of(Pieces(8), *fields(3)), WidenLinears(), inputs=fields)
    assert operators(result) == {"reshape": 1, "cat": 1, "linear": 1, "relu": 1}
    (weight,) = (parameter for name, parameter in result.named_parameters() if "wide" in name)
    assert weight.shape == (8, 6 * 4 + 3)
    assert int((weight == 0).all(0).sum()) == 6 * 4 - sum(WIDTHS)
    assert not WidenLinears()(clone_graph_module(result)).modified


def test_a_wide_linear_keeps_its_pieces_because_zeros_would_cost_more():
    graph = graph_of(Pieces(4096), *fields(3))
    assert operators(rewritten(graph, WidenLinears(), inputs=fields)) == operators(graph)


class PiecesUsedTwice(Pieces):
    """What a curve reads must stay what it was."""

    def forward(self, fields: Tensor, dense: Tensor) -> Tensor:
        pieces = [fields[:, field, :width] for field, width in enumerate(WIDTHS)]
        together = torch.cat([*pieces, dense, pieces[0]], 1)
        return self.first(together).relu().sum(1, keepdim=True) + together.tanh().sum(1, keepdim=True)


def test_features_that_something_else_reads_are_not_widened():
    graph = graph_of(PiecesUsedTwice(8), *fields(3))
    assert operators(rewritten(graph, WidenLinears(), inputs=fields))["tanh"] == 1


class SquaresOfPieces(Pieces):
    """A Linear of the squares of what another one reads."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.second = nn.Linear(self.first.in_features, outputs)

    def forward(self, fields: Tensor, dense: Tensor) -> Tensor:
        pieces = [fields[:, field, :width] for field, width in enumerate(WIDTHS)]
        together = torch.cat([*pieces, dense, pieces[0]], 1)
        return self.first(together).relu() + self.second(self.squared(together)).tanh()

    def squared(self, features: Tensor) -> Tensor:
        return features * features


class PowersOfPieces(SquaresOfPieces):
    def squared(self, features: Tensor) -> Tensor:
        return features**2


class CubesOfPieces(SquaresOfPieces):
    def squared(self, features: Tensor) -> Tensor:
        return features**3


@pytest.mark.parametrize(("model", "square"), [(SquaresOfPieces, "mul"), (PowersOfPieces, "pow")])
def test_a_linear_of_squares_is_widened_with_its_squares(model: type[SquaresOfPieces], square: str):
    result = rewritten(graph_of(model(8), *fields(3)), WidenLinears(), inputs=fields)
    assert operators(result) == {"reshape": 1, "cat": 1, square: 1, "linear": 2, "relu": 1, "tanh": 1, "add": 1}
    widths = {parameter.shape for name, parameter in result.named_parameters() if "wide" in name}
    assert widths == {(8, 6 * 4 + 3)}


def test_a_linear_of_anything_but_squares_keeps_its_pieces():
    graph = graph_of(CubesOfPieces(8), *fields(3))
    assert operators(rewritten(graph, WidenLinears(), inputs=fields)) == operators(graph)


class MixedCodes(nn.Module):
    """Codes of different widths beside the weights of the linear term."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.ModuleList(nn.Embedding(11 + field, width) for field, width in enumerate(WIDTHS))
        self.weights = nn.ModuleList(nn.Embedding(11 + field, 1) for field in range(len(WIDTHS)))
        self.first = nn.Linear(sum(WIDTHS), 8)
        self.head = nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        codes = torch.cat([table(ids[:, field]) for field, table in enumerate(self.codes)], 1)
        linear = torch.cat([table(ids[:, field]) for field, table in enumerate(self.weights)], 1)
        return self.head(self.first(codes).relu()) + linear.sum(1, keepdim=True)


def ids(rows: int) -> tuple[Tensor]:
    return (torch.randint(11, (rows, len(WIDTHS))),)


@pytest.mark.parametrize("train", [False, True])
def test_codes_of_different_widths_end_as_one_gather_that_is_read_in_two_slices(train: bool):
    model = MixedCodes()
    model.requires_grad_(train)
    result = rewritten(graph_of(model, *ids(3)), PackTables(), CollapseMoves(), WidenLinears(), inputs=ids)
    found = operators(result)
    assert found["embedding"] == 1
    assert found["slice"] <= 2
    assert found["cat"] == 0
