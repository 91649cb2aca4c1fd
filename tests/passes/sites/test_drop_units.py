"""Units that are constant on real rows leave, and nothing changes on those rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from passes.graph import clone_graph_module
from passes.graph.errors import TableIndexError
from passes.sites.drop_units import DropUnits, Units, hidden_layers


class Mlp(nn.Module):
    """Two hidden layers; some units of each are dead, some of the second are constant and not zero."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 6)
        self.third, self.other = nn.Linear(6, 3, bias=bias), nn.Linear(6, 2)
        with torch.no_grad():
            self.first.bias[[1, 4]] = -1e3
            self.second.weight[[0, 5]] = 0
            self.second.bias[0], self.second.bias[5] = 2.5, -1.0

    def forward(self, features: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(features))))
        return torch.cat([self.third(hidden), torch.sigmoid(self.other(hidden))], dim=-1)


UNITS = {
    "first": Units(torch.tensor([0, 2, 3, 5, 6, 7]), torch.zeros(8, dtype=torch.float64)),
    "second": Units(torch.tensor([1, 2, 3, 4]), torch.tensor([2.5, 9, 9, 9, 9, 0], dtype=torch.float64)),
}


def captured(model: nn.Module) -> afm_fx.Program:
    return afm_fx.capture(model.eval(), (torch.rand(4, 5),)).to(torch.float64)


def without(program: afm_fx.Program, units: dict[str, Units]) -> afm_fx.Program:
    module = clone_graph_module(program.graph_module)
    DropUnits(units)(module)
    return program.with_graph(module)


@pytest.mark.parametrize("names", [["first"], ["second"], ["first", "second"]])
@pytest.mark.parametrize("bias", [True, False])
def test_constant_units_leave_and_the_outputs_stay(names: list[str], bias: bool) -> None:
    program = captured(Mlp(bias=bias))
    smaller = without(program, {name: UNITS[name] for name in names})
    rows = torch.rand(50, 5)
    torch.testing.assert_close(smaller.run(rows), program.run(rows), rtol=1e-12, atol=1e-12)
    shapes = {name: tuple(each.shape) for name, each in smaller.graph_module.named_parameters()}
    kept = {name: len(UNITS[name].kept) if name in names else UNITS[name].constants.shape[0] for name in UNITS}
    assert shapes["second.weight"] == (kept["second"], kept["first"])
    assert smaller.parameter_count() < program.parameter_count()


def test_it_is_the_last_layer_that_has_no_units_to_drop() -> None:
    layers = list(hidden_layers(captured(Mlp()).graph_module))
    assert [(layer.name, layer.units, len(layer.consumers)) for layer in layers] == [("first", 8, 1), ("second", 6, 2)]


class Elsewhere(nn.Module):
    def __init__(self, use: str) -> None:
        super().__init__()
        self.first, self.second, self.use = nn.Linear(5, 5), nn.Linear(5, 5), use

    def forward(self, features: Tensor) -> Tensor:
        hidden = torch.relu(self.first(features))
        if self.use == "residual":
            return self.second(hidden) + hidden
        if self.use == "shared":
            return self.second(hidden) + self.second(torch.relu(self.first(features * 2)))
        if self.use == "normalized":
            return self.second(torch.softmax(self.first(features), dim=-1))
        return self.second(hidden * features)


@pytest.mark.parametrize("use", ["residual", "shared", "normalized", "gated"])
def test_layers_whose_units_are_read_elsewhere_stay(use: str) -> None:
    assert not list(hidden_layers(captured(Elsewhere(use)).graph_module))


def test_units_that_do_not_fit_are_refused_by_name() -> None:
    program = captured(Mlp())
    with pytest.raises(TableIndexError, match="'nowhere'"):
        without(program, {"nowhere": UNITS["first"]})
    with pytest.raises(TableIndexError, match="'second' has 6 units"):
        without(program, {"second": UNITS["first"]})
