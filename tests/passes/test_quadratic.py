"""Products on codes: every form equals the model with its tables' rows projected, and says what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import afm_fx
from passes.choice import Alternative, choose
from passes.factor import Factor, factor_of
from passes.graph_tools import PROVENANCE, aten, clone_graph_module, get_attribute
from passes.outcomes import Law
from passes.sink_codes import Fate, SinkCodes, analyze
from passes.sites import find_sites
from tests.passes.test_sink_codes import FIELDS, WIDTH, Looked, build, inputs

pytestmark = pytest.mark.xdist_group("quadratic")  # one worker captures every case once

Function = Callable[[Looked], Tensor]
ONES, OTHERS = (0, 0, 0, 1, 1, 2), (1, 2, 3, 2, 3, 3)


def factorization_machine(features: Tensor) -> Tensor:
    """Half of the square of the sum less the sum of squares, [batch, 1]."""
    return 0.5 * (features.sum(1, keepdim=True) ** 2 - (features * features).sum(1, keepdim=True)).sum(2)


def pairs(rows: Sequence[Tensor], which: Sequence[int]) -> Tensor:
    return torch.cat([rows[field] for field in which], 1)


def interaction(rows: Tensor) -> Tensor:
    return torch.bmm(rows, rows.transpose(1, 2))


def dense_row(x: Looked) -> Tensor:
    return x.dense.repeat(1, WIDTH // 3)


WHOLE: dict[str, Function] = {
    "square, summed": lambda x: (x.own[0] * x.own[0]).sum(1, keepdim=True),
    "power, summed": lambda x: (x.stacked**2).sum(-1),
    "square, mean": lambda x: (x.own[0] ** 2).mean(-1),
    "norm of a gated value": lambda x: ((x.own[0] * x.dense[:, :1]) ** 2).sum(-1),
    "norm of a shifted value": lambda x: ((x.own[0] + 1.5) ** 2).mean(-1),
    "FM of one table each": lambda x: factorization_machine(torch.stack(x.own, 1)),
    "FM of one table for all": lambda x: factorization_machine(x.stacked),
    "FM with a dense row": lambda x: factorization_machine(torch.stack([*x.own, dense_row(x)], 1)),
    "inner products of all pairs": lambda x: (pairs(x.rows, ONES) * pairs(x.rows, OTHERS)).sum(2, keepdim=True),
    "inner product of two rows of one table": lambda x: (x.stacked[:, 0] * x.stacked[:, 1]).sum(-1),
    "inner product of two tables": lambda x: (x.own[0] * x.own[1]).sum(-1),
    "inner product of a gated value": lambda x: (x.own[0] * x.dense[:, :1] * x.own[1]).sum(-1),
    "bilinear form": lambda x: (x.narrow(torch.stack(x.own[:2], 1)) * x.narrow(torch.stack(x.own[2:], 1))).sum(-1),
    "one row against a sequence": lambda x: (x.rows[0] * x.stacked).sum(-1),
    "scaled, negated, added": lambda x: (-(x.own[0] * x.own[1]) / 3.0 + x.own[2] ** 2 - x.own[2] * x.own[3]).sum(-1),
    "reshaped before the sum": lambda x: (x.own[0] * x.own[1]).unsqueeze(1).view(-1, WIDTH).sum(1),
    "dot interaction of all fields": lambda x: interaction(torch.stack(x.own, 1)),
    "dot interaction with a dense row in front": lambda x: interaction(torch.stack([dense_row(x), *x.own], 1)),
    "dot interaction with a dense row inside": lambda x: interaction(
        torch.stack([*x.own[:2], dense_row(x), *x.own[2:]], 1)
    ),
    "dot interaction of one table's rows": lambda x: torch.matmul(x.stacked, x.stacked.transpose(1, 2)),
    "attention scores over a sequence": lambda x: torch.matmul(x.own[0][:, None], x.stacked.transpose(1, 2)),
    "scores of two tables' rows": lambda x: torch.matmul(x.own[0][:, None], x.stacked.transpose(-1, -2)).softmax(-1),
    "einsum over fields": lambda x: torch.einsum("bie,bje->bji", torch.stack(x.own, 1), torch.stack(x.own[::-1], 1)),
    "einsum of fields and a sequence": lambda x: torch.einsum("bie,bje->bij", torch.stack(x.own, 1), x.stacked),
    "einsum of batches": lambda x: torch.einsum("be,be->b", x.own[0], x.own[1]),
    "heads": lambda x: torch.einsum("hbie,hbje->hbij", heads(torch.stack(x.own, 1)), heads(torch.stack(x.own, 1))),
}
"""Ends in whole inner products: possible on codes."""


def heads(features: Tensor) -> Tensor:
    """[heads, batch, fields, width / heads]."""
    return torch.stack(torch.split(features, WIDTH // 2, dim=2))


REJECTED: dict[str, Function] = {
    "Hadamard pooling": lambda x: (torch.stack(x.own, 1) * torch.stack(x.own[::-1], 1)).sum(1),
    "Hadamard product": lambda x: x.own[0] * x.own[1],
    "half an inner product": lambda x: (x.own[0] * x.own[1]).view(-1, 2, WIDTH // 2).sum(-1),
    "product of three": lambda x: ((x.own[0] * x.own[0]) * x.own[1]).sum(1),
    "cube": lambda x: (x.own[0] ** 3).sum(1),
    "activated products": lambda x: (x.own[0] * x.own[1]).relu().sum(1),
    "product plus a dense one": lambda x: (x.own[0] * x.own[1] + dense_row(x)).sum(1),
    "outer product": lambda x: torch.matmul(x.own[0][:, :, None], x.own[1][:, None]),
    "outer product as einsum": lambda x: torch.einsum("bi,bj->bij", x.own[0], x.own[1]),
    "compressed interaction": lambda x: torch.einsum("bhd,bmd->bhmd", torch.stack(x.own, 1), torch.stack(x.own, 1)),
    "fields against features": lambda x: torch.matmul(x.stacked[..., :FIELDS], x.stacked),
    "mean over the batch": lambda x: (x.own[0] * x.own[1]).mean(),
}
"""Needs the products one by one, or something else: never on codes."""


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
@pytest.mark.parametrize("name", [*WHOLE, *REJECTED])
def test_equals_the_model_with_projected_rows(name: str, rank: int) -> None:
    program = build((WHOLE | REJECTED)[name], 1)
    factors = factors_of(program.graph_module, rank)
    clone = clone_graph_module(program.graph_module)
    sink = SinkCodes(factors)
    sink(clone)
    low_rank, reference = program.with_graph(clone), projected(program, factors)
    for rows in (1, 4, 7):
        batch = inputs(rows)
        torch.testing.assert_close(low_rank.run(batch), reference.run(batch), rtol=1e-10, atol=1e-10)
    ranks = dict.fromkeys(factors, rank)
    analysis = analyze(program.graph_module, ranks=ranks, only=factors)
    assert analysis.verdicts == sink.verdicts
    assert analysis.ledger.total(ranks) == sum(parameter.numel() for parameter in clone.parameters())
    assert analysis.ledger.total({}) == program.parameter_count()


@pytest.mark.parametrize("name", WHOLE)
def test_is_weighed_with_both_costs(name: str) -> None:
    verdicts = [v for v in analyze(build(WHOLE[name], 1).graph_module).verdicts if v.law is Law.QUADRATIC]
    assert verdicts
    for verdict in verdicts:
        assert verdict.cost_on_codes is not None
        assert verdict.cost_restored is not None
        cheaper = verdict.cost_on_codes < verdict.cost_restored
        assert verdict.fate is (Fate.ON_CODES if cheaper else Fate.RESTORED)


@pytest.mark.parametrize("name", REJECTED)
def test_is_restored_with_the_reason(name: str) -> None:
    verdicts = analyze(build(REJECTED[name], 1).graph_module).verdicts
    assert verdicts
    assert {verdict.fate for verdict in verdicts} == {Fate.RESTORED}
    assert Law.QUADRATIC not in {verdict.law for verdict in verdicts}


@pytest.mark.parametrize(
    "name",
    [
        "square, summed",
        "FM of one table for all",
        "inner products of all pairs",
        "dot interaction with a dense row in front",
        "dot interaction of one table's rows",
        "attention scores over a sequence",
    ],
)
def test_nothing_is_decoded_at_rank_one(name: str) -> None:
    clone = clone_graph_module(build(WHOLE[name], 1).graph_module)
    SinkCodes(factors_of(clone, 1))(clone)
    assert "restore" not in {node.meta.get(PROVENANCE) for node in clone.graph.nodes}


def test_one_orthonormal_decoder_leaves_no_trace_in_scores() -> None:
    clone = clone_graph_module(build(WHOLE["dot interaction of one table's rows"], 1).graph_module)
    SinkCodes(factors_of(clone, 2, centred=False))(clone)
    assert [node.target for node in clone.graph.nodes if node.op == "call_function"] == [
        aten.embedding.default,
        aten.transpose.int,
        aten.matmul.default,
    ]
    assert [name for name, _ in clone.named_parameters()] == ["shared.codes.weight"]


def test_features_that_are_decoded_anyway_are_used() -> None:
    program = build(lambda x: (x.own[0] * x.own[0]).sum(1) + x.own[0].relu().sum(1), 1)
    verdicts = {verdict.operator: verdict for verdict in analyze(program.graph_module).verdicts}
    assert verdicts["aten.mul.Tensor"].fate is Fate.ON_CODES  # a code of one number is shorter still
    ranks = {"tables.0": WIDTH}
    verdicts = {verdict.operator: verdict for verdict in analyze(program.graph_module, ranks=ranks).verdicts}
    assert verdicts["aten.mul.Tensor"].fate is Fate.RESTORED
    assert (verdicts["aten.mul.Tensor"].cost_on_codes, verdicts["aten.mul.Tensor"].cost_restored) == (WIDTH, WIDTH)


def test_products_that_are_needed_one_by_one_are_summed_as_they_are() -> None:
    def both(x: Looked) -> Tensor:
        products = x.own[0] * x.own[1]
        return products.sum(1) + products.relu().sum(1)

    program = build(both, 1)
    clone = clone_graph_module(program.graph_module)
    sink = SinkCodes(factors_of(clone, 1))
    sink(clone)
    assert {(verdict.operator, str(verdict.fate)) for verdict in sink.verdicts} == {("aten.mul.Tensor", "restored")}
    assert "quadratic" not in {node.meta.get(PROVENANCE) for node in clone.graph.nodes}


def test_what_one_choice_decodes_is_there_for_the_next() -> None:
    program = build(lambda x: x.own[0].relu(), 1)
    first, second, *_ = program.graph_module.graph.nodes

    candidates = [[Alternative(second, 20, 11, {first: 10})], [Alternative(second, 30, 19, {first: 10})]]
    assert choose(candidates[:1], ()) == [[True]]
    assert choose(candidates, ()) == [[False], [False]]
