"""Products on codes: every form equals the model with its tables' rows projected, and says what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import afm_fx
from afm_fx.planning.cost import CostKind, cost
from passes.codes.factor import Factor, factor_of
from passes.graph import PROVENANCE, aten, clone_graph_module, get_attribute
from passes.laws.outcomes import Law
from passes.laws.verdicts import Fate
from passes.sink_codes import SinkCodes, analyze
from passes.sites.sites import find_sites
from tests.passes.test_sink_codes import FIELDS, WIDTH, Looked, build, inputs

pytestmark = pytest.mark.xdist_group("quadratic")  # one worker captures every case once

Function = Callable[[Looked], Tensor]
PRODUCTS = (Law.QUADRATIC, Law.INTERACTION)
ONES, OTHERS = [0, 0, 0, 1, 1, 2], [1, 2, 3, 2, 3, 3]


def factorization_machine(features: Tensor) -> Tensor:
    """Half of the square of the sum less the sum of squares, [batch, 1]."""
    return 0.5 * (features.sum(1, keepdim=True) ** 2 - (features * features).sum(1, keepdim=True)).sum(2)


def pairs(rows: Sequence[Tensor], which: Sequence[int]) -> Tensor:
    return torch.cat([rows[field] for field in which], 1)


def interaction(rows: Tensor) -> Tensor:
    return torch.bmm(rows, rows.transpose(1, 2))


def dense_row(x: Looked) -> Tensor:
    return x.dense.repeat(1, WIDTH // 3)


def _total(x: Looked) -> Tensor:
    return sum(x.own)  # type: ignore[return-value]  # never the 0 of an empty sum


ON_CODES: dict[str, Function] = {
    "square, summed": lambda x: (x.own[0] * x.own[0]).sum(1, keepdim=True),
    "negated square, summed": lambda x: (-(x.own[0] * x.own[0])).sum(-1),
    "doubled square, summed": lambda x: (2.0 * (x.own[0] * x.own[0])).sum(-1),
    "power, summed": lambda x: (x.stacked**2).sum(-1),
    "square, mean": lambda x: (x.own[0] ** 2).mean(-1),
    "FM of one table for all": lambda x: factorization_machine(x.stacked),
    "inner product of two rows of one table": lambda x: (x.stacked[:, 0] * x.stacked[:, 1]).sum(-1),
    "one row against the others of its table": lambda x: (x.stacked[:, :1] * x.stacked[:, 1:]).sum(-1),
    "inner products of all pairs of one table": lambda x: (x.stacked[:, ONES] * x.stacked[:, OTHERS]).sum(2),
    "norm of a doubled value": lambda x: ((x.own[0] * 2.0) ** 2).sum(-1),
    "scaled, negated, added": lambda x: (
        -(x.own[0] * x.own[0]) / 3.0 + x.own[2] ** 2 - x.stacked[:, 0] * x.stacked[:, 1]
    ).sum(-1),
    "squares of all features but one": lambda x: (x.own[0][:, 1:] ** 2).sum(-1),
    "squares of all features but one, a sum per table": lambda x: (torch.stack(x.own, 1)[:, :, :-1] ** 2).sum(2),
    "inner product of two rows but for one feature": lambda x: (
        x.stacked[:, 0, :-1] * (x.stacked[:, 1, :-1] * 0.5)
    ).sum(-1),
    "FM of all features but one of one table for all": lambda x: factorization_machine(x.stacked[:, :, :-1]),
    "reshaped before the sum": lambda x: (x.own[0] * x.own[0]).unsqueeze(1).view(-1, WIDTH).sum(1),
}
"""Inner products of features of one orthonormal decoder."""

IN_PART: dict[str, Function] = {
    "FM of one table each": lambda x: factorization_machine(torch.stack(x.own, 1)),
    "FM beside a linear term": lambda x: factorization_machine(torch.stack(x.own, 1)[:, :, :-1]) + x.rows[0][:, :, -1],
    "FM with a dense row": lambda x: factorization_machine(torch.stack([*x.own, dense_row(x)], 1)),
    "FM of gated rows and a square": lambda x: (x.own[0] ** 2 - (x.own[1] * x.dense[:, :1]) ** 2).sum(-1),
    "squares of several, apart": lambda x: (torch.stack(x.own, 1) ** 2 - torch.stack([_total(x)] * 4, 1) ** 2).sum(2),
}
"""Sums of such inner products and of others."""

RESTORED: dict[str, Function] = {
    "norm of a gated value": lambda x: ((x.own[0] * x.dense[:, :1]) ** 2).sum(-1),
    "norm of a shifted value": lambda x: ((x.own[0] + 1.5) ** 2).mean(-1),
    "inner products of all pairs": lambda x: (pairs(x.rows, ONES) * pairs(x.rows, OTHERS)).sum(2, keepdim=True),
    "squares of all features but two": lambda x: (x.own[0][:, 2:] ** 2).sum(-1),
    "squares of all features but one, scaled": lambda x: ((x.own[0] * x.dense[:, :1] + 1.0)[:, 1:] ** 2).sum(-1),
    "inner product of two tables": lambda x: (x.own[0] * x.own[1]).sum(-1),
    "one row against a sequence": lambda x: (x.rows[0] * x.stacked).sum(-1),
    "dot interaction of all fields": lambda x: interaction(torch.stack(x.own, 1)),
    "dot interaction with a dense row in front": lambda x: interaction(torch.stack([dense_row(x), *x.own], 1)),
    "scores of two tables' rows": lambda x: torch.matmul(x.own[0][:, None], x.stacked.transpose(-1, -2)).softmax(-1),
    "einsum over fields": lambda x: torch.einsum("bie,bje->bji", torch.stack(x.own, 1), torch.stack(x.own[::-1], 1)),
    "heads": lambda x: torch.einsum("hbie,hbje->hbij", heads(torch.stack(x.own, 1)), heads(torch.stack(x.own, 1))),
    "Hadamard pooling": lambda x: (torch.stack(x.own, 1) * torch.stack(x.own[::-1], 1)).sum(1),
    "Hadamard product": lambda x: x.own[0] * x.own[1],
    "half an inner product": lambda x: (x.own[0] * x.own[0]).view(-1, 2, WIDTH // 2).sum(-1),
    "product of three": lambda x: ((x.own[0] * x.own[0]) * x.own[1]).sum(1),
    "cube": lambda x: (x.own[0] ** 3).sum(1),
    "activated products": lambda x: (x.own[0] * x.own[0]).relu().sum(1),
    "product plus a dense one": lambda x: (x.own[0] * x.own[0] + dense_row(x)).sum(1),
    "outer product": lambda x: torch.matmul(x.own[0][:, :, None], x.own[1][:, None]),
    "compressed interaction": lambda x: torch.einsum("bhd,bmd->bhmd", torch.stack(x.own, 1), torch.stack(x.own, 1)),
    "fields against features": lambda x: torch.matmul(x.stacked[..., :FIELDS], x.stacked),
    "mean over the batch": lambda x: (x.own[0] * x.own[0]).mean(),
}
"""Needs the features, or is no faster on codes."""

ALL = ON_CODES | IN_PART | RESTORED


def heads(features: Tensor) -> Tensor:
    """[heads, batch, fields, width / heads]."""
    return torch.stack(torch.split(features, WIDTH // 2, dim=2))


def factors_of(module: torch.fx.GraphModule, rank: int, *, centred: bool = True) -> dict[str, Factor]:
    """Factors of every table with random bases and centres."""
    factors = {}
    for site in find_sites(module):
        if site.kind == "embedding" and site.refusal is None:
            basis = torch.linalg.qr(torch.randn(site.width, site.width, dtype=torch.float64))[0][:, :rank]
            centre = torch.randn(site.width, dtype=torch.float64) if centred else None
            factors[site.name] = factor_of(basis.mT.contiguous(), basis, centre)
    return factors


def projected(program: afm_fx.Program, factors: dict[str, Factor]) -> afm_fx.Program:
    """The original with every table's rows encoded and decoded."""
    module = program.to(torch.float32).to(torch.float64).graph_module  # a copy of the parameters
    for site in find_sites(module):
        if site.name in factors:
            table = get_attribute(module, site.parameter)
            exact = get_attribute(program.graph_module, site.parameter)
            table.data.copy_(factors[site.name].decode(factors[site.name].encode_table(exact)))
    for name, parameter in module.named_parameters():
        if name.removesuffix(".weight") not in factors:
            parameter.data.copy_(get_attribute(program.graph_module, name))
    return program.with_graph(module)


@pytest.mark.parametrize("rank", [1, 2, WIDTH])
@pytest.mark.parametrize("name", ALL)
def test_equals_the_model_with_projected_rows(name: str, rank: int) -> None:
    program = build(ALL[name], 1)
    factors = factors_of(program.graph_module, rank)
    clone = clone_graph_module(program.graph_module)
    sink = SinkCodes(factors)
    sink(clone)
    low_rank, reference = program.with_graph(clone), projected(program, factors)
    for rows in (1, 4, 7):
        batch = inputs(rows)
        torch.testing.assert_close(low_rank.run(batch), reference.run(batch), rtol=1e-10, atol=1e-10)
    ranks = dict.fromkeys(factors, rank)
    analysis = analyze(program.graph_module, ranks=ranks)
    assert analysis.verdicts == sink.verdicts
    assert cost(analysis.rewritten, CostKind.PARAMETERS) == cost(clone, CostKind.PARAMETERS)


def fates(function: Function) -> set[str]:
    return {str(v.fate) for v in analyze(build(function, 1).graph_module).verdicts if v.law in PRODUCTS}


@pytest.mark.parametrize("name", ON_CODES)
def test_nothing_is_decoded(name: str) -> None:
    clone = clone_graph_module(build(ON_CODES[name], 1).graph_module)
    sink = SinkCodes(factors_of(clone, 1))
    sink(clone)
    assert {verdict.fate for verdict in sink.verdicts if verdict.law is Law.QUADRATIC} == {Fate.ON_CODES}
    assert "restore" not in {node.meta.get(PROVENANCE) for node in clone.graph.nodes}


@pytest.mark.parametrize("name", IN_PART)
def test_each_product_has_a_verdict_of_its_own(name: str) -> None:
    assert fates(IN_PART[name]) == {"on codes", "restored"}


@pytest.mark.parametrize("name", RESTORED)
def test_is_restored_with_the_reason(name: str) -> None:
    verdicts = analyze(build(RESTORED[name], 1).graph_module).verdicts
    assert Fate.RESTORED in {verdict.fate for verdict in verdicts}
    assert Law.QUADRATIC not in {verdict.law for verdict in verdicts}


def test_the_squares_of_one_table_leave_no_trace_of_its_decoder() -> None:
    clone = clone_graph_module(build(ON_CODES["power, summed"], 1).graph_module)
    SinkCodes(factors_of(clone, 2, centred=False))(clone)
    targets = {node.target for node in clone.graph.nodes if node.op == "call_function"}
    assert targets == {aten.embedding.default, aten.reshape.default, aten.mul.Tensor, aten.sum.dim_IntList}
    assert [name for name, _ in clone.named_parameters()] == ["shared.codes.weight"]


def test_a_product_that_is_also_needed_one_by_one_is_restored_there() -> None:
    def both(x: Looked) -> Tensor:
        products = x.own[0] * x.own[0]
        return products.sum(1) + products.relu().sum(1)

    assert fates(both) == {"on codes", "restored"}
