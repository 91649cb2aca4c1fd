"""Products with a constant matrix in one form: which are written as Linears, and the way back to convolutions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.large_tables.absent_tables import without_tables
from afm_fx.program.exported_program import to_exported_program
from passes.canonical.pointwise_convolutions import PointwiseConvolutions
from passes.canonical.unify_linears import UnifyLinears, parts_of
from passes.graph import clone_graph_module

ROWS, CHANNELS, POSITIONS = 6, 8, 5


class Channels(nn.Module):
    """A function of [rows, channels, positions], with a convolution and a stack of matrices at hand."""

    def __init__(self, function: Callable[[Channels, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Conv1d(CHANNELS, 12, 1)
        self.second = nn.Conv1d(12, 7, 1, bias=False)
        self.wide = nn.Conv1d(CHANNELS, 12, 3)
        self.strided = nn.Conv1d(CHANNELS, 12, 1, stride=2)
        self.padded = nn.Conv1d(CHANNELS, 12, 1, padding=1)
        self.grouped = nn.Conv1d(CHANNELS, 12, 1, groups=2)
        self.kernels = nn.Parameter(torch.randn(3, CHANNELS, CHANNELS))
        self.experts = nn.ParameterList(nn.Parameter(torch.randn(2, CHANNELS, 4)) for _ in range(2))
        self.fixed = nn.Buffer(torch.randn(2, CHANNELS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def columns(x: Tensor) -> Tensor:
    return x[:, :, :1].tanh()


def crossed(model: Channels, x: Tensor) -> Tensor:
    first = columns(x)
    second = first * torch.matmul(model.kernels[0], first) + first
    return first * torch.matmul(model.kernels[1], second) + second


LINEAR: dict[str, tuple[Callable[[Channels, Tensor], Tensor], dict[str, tuple[int, int]]]] = {
    "pointwise convolutions": (
        lambda model, x: model.second(model.first(x).relu()).relu(),
        {"first.linear": (12, CHANNELS), "second.linear": (7, 12)},
    ),
    "matrices of a stack": (crossed, {"kernels_0": (CHANNELS, CHANNELS), "kernels_1": (CHANNELS, CHANNELS)}),
    "a matrix used twice": (
        lambda model, x: torch.matmul(model.kernels[2], torch.matmul(model.kernels[2], columns(x)).relu()),
        {"kernels_2": (CHANNELS, CHANNELS)},
    ),
    "transposed matrices of a list of stacks": (
        lambda model, x: torch.matmul(model.experts[1][0], torch.matmul(model.experts[0][1].t(), columns(x)).tanh()),
        {"experts.0_1_t": (4, CHANNELS), "experts.1_0": (CHANNELS, 4)},
    ),
}

KEPT: dict[str, Callable[[Channels, Tensor], Tensor]] = {
    "three positions at once": lambda model, x: model.wide(x),
    "every second position": lambda model, x: model.strided(x),
    "positions added": lambda model, x: model.padded(x),
    "groups of channels": lambda model, x: model.grouped(x),
    "more than one column": lambda model, x: torch.matmul(model.kernels[0], x),
    "a stack that is read whole": lambda model, x: torch.matmul(model.kernels[0], columns(x)) + model.kernels.sum(),
    "a kernel that is read elsewhere": lambda model, x: model.first(x) * model.first.weight.sum(),
    "a stack that does not learn": lambda model, x: torch.matmul(model.fixed[1], columns(x)),
    "a matrix computed from the batch": lambda model, x: torch.matmul(x.mean(0) @ x.mean(0).T, columns(x)),
}


def captured(function: Callable[[Channels, Tensor], Tensor]) -> tuple[Channels, afm_fx.Program]:
    model = Channels(function).double()
    return model, afm_fx.capture(model, (torch.randn(4, CHANNELS, POSITIONS).double(),))


def fresh(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, CHANNELS, POSITIONS).double()


def operators(module: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", LINEAR)
def test_written_as_linears_that_share_the_models_memory(name: str) -> None:
    function, expected = LINEAR[name]
    model, program = captured(function)
    sites = {site.name: (site.width, site.rows) for site in afm_fx.explain(program).sites}
    assert sites == expected
    for rows in (1, 3, 9):
        batch = fresh(rows)
        torch.testing.assert_close(program.run((batch,)), model(batch).detach(), rtol=1e-12, atol=1e-12)
    parts = parts_of(program.graph_module)
    assert len(parts) == len(expected)
    with torch.no_grad():
        for part in parts.values():
            model.get_parameter(part.name).mul_(3)
    torch.testing.assert_close(program.run((batch,)), model(batch).detach(), rtol=1e-12, atol=1e-12)
    assert not UnifyLinears()(clone_graph_module(program.graph_module)).modified


@pytest.mark.parametrize("name", KEPT)
def test_everything_else_stays_as_it_is(name: str) -> None:
    model, program = captured(KEPT[name])
    assert not parts_of(program.graph_module)
    assert {name for name, _ in program.graph_module.named_parameters()} <= {
        name for name, _ in model.named_parameters()
    }
    batch = fresh()
    assert torch.equal(program.run((batch,)), model(batch).detach())


@pytest.mark.parametrize("policy", [None, afm_fx.FullRank(), afm_fx.Fixed(linear=2)])
def test_convolutions_are_served_as_convolutions_dense_and_low_rank(policy: afm_fx.planning.Policy | None) -> None:
    program = captured(LINEAR["pointwise convolutions"][0])[1]
    if policy is not None:
        plan = afm_fx.make_plan(program, afm_fx.calibrate(program, [(fresh(64),)]), policy)
        program = afm_fx.apply_plan(program, plan)
    served = clone_graph_module(program.graph_module)
    assert PointwiseConvolutions()(served).modified
    assert not PointwiseConvolutions()(served).modified
    for module in (served, to_exported_program(program).module(), afm_fx.pack(program).program.graph_module):
        found = operators(module)
        assert found.count("aten.conv1d.default") == (2 if policy is None else 4)
        assert not {"aten.transpose.int", "aten.permute.default", "aten.linear.default"} & set(found)
    batch = fresh()
    torch.testing.assert_close(served(batch), program.run((batch,)), rtol=1e-12, atol=1e-12)
    assert sum(each.numel() for each in served.parameters()) == program.parameter_count()


class ReadBefore(nn.Module):
    """A Linear between two swaps, whose features something else reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(CHANNELS, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        features = self.linear(x.transpose(1, 2))
        return features.transpose(1, 2) + features.sum()


def test_a_linear_whose_features_are_read_before_they_are_swapped_stays_one() -> None:
    program = afm_fx.capture(ReadBefore(), (fresh(4),))
    assert not PointwiseConvolutions()(clone_graph_module(program.graph_module)).modified


def test_the_dense_file_has_the_models_own_convolutions(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = Channels(LINEAR["pointwise convolutions"][0])
    program = afm_fx.capture(model, (fresh(4).float(),))
    counts = dict(afm_fx.export_onnx(program, tmp_path / "dense.onnx").operators)
    assert counts == {"Conv": 2, "Relu": 2}


def test_parts_of_large_parameters_are_read_from_the_checkpoint(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = Channels(LINEAR["matrices of a stack"][0])
    safetensors.save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    absent = without_tables(
        lambda: (Channels(LINEAR["matrices of a stack"][0]), (fresh(2).float(),)),
        tmp_path / "model.safetensors",
        large_bytes=model.kernels.nbytes,
    )
    batch = fresh().float()
    torch.testing.assert_close(absent.program.run((batch,)), model(batch).detach(), rtol=1e-5, atol=1e-5)
