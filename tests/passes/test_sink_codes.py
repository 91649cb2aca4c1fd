"""The rewrite operator by operator: what becomes of a looked-up value, and that nothing changes at full rank."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.planning.cost import CostKind, cost
from afm_fx.program.watched_run import WatchedRun
from passes.codes.factor import Factor, factor_of
from passes.graph import PROVENANCE, aten, clone_graph_module
from passes.graph.errors import TableIndexError
from passes.laws.verdicts import Fate
from passes.sink_codes import SinkCodes, analyze
from passes.sites.sites import find_sites

pytestmark = pytest.mark.xdist_group("sink codes")  # one worker captures every case once

BATCH, FIELDS, ROWS, WIDTH = 5, 4, 9, 6


@dataclass(frozen=True)
class Looked:
    """What a case works on."""

    own: list[Tensor]  # one [batch, WIDTH] per field, a table each
    rows: list[Tensor]  # the same as [batch, 1, WIDTH]
    stacked: Tensor  # [batch, FIELDS, WIDTH] from one table
    dense: Tensor  # [batch, 3]
    linear: Callable[[Tensor], Tensor]
    narrow: nn.Linear


class Case(nn.Module):
    """Tables, and one function of their lookups."""

    def __init__(self, function: Callable[[Looked], Tensor], inputs: int, narrow: int = WIDTH) -> None:
        super().__init__()
        self.function = function
        self.tables = nn.ModuleList(nn.Embedding(ROWS, WIDTH) for _ in range(FIELDS))
        self.shared = nn.Embedding(ROWS, WIDTH)
        self.linear = nn.Linear(inputs, 7)
        self.narrow = nn.Linear(narrow, 5, bias=False)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        own = [table(ids[:, field]) for field, table in enumerate(self.tables)]
        rows = [table(ids[:, field : field + 1]) for field, table in enumerate(self.tables)]
        looked = Looked(own, rows, self.shared(ids), dense, self.linear, self.narrow)
        return self.function(looked)


def inputs(rows: int = BATCH) -> tuple[Tensor, Tensor]:
    return torch.randint(0, ROWS, (rows, FIELDS)), torch.randn(rows, 3)


def orthonormal_factors(module: torch.fx.GraphModule, kinds: tuple[str, ...] = ("embedding",)) -> dict[str, Factor]:
    """Full-rank factors with random bases and centres."""
    factors: dict[str, Factor] = {}
    for site in find_sites(module):
        if site.refusal is None and site.kind in kinds:
            basis = torch.linalg.qr(torch.randn(site.width, site.width, dtype=torch.float64))[0]
            centre = torch.randn(site.width, dtype=torch.float64) if site.centred else None
            factors[site.name] = factor_of(basis.mT.contiguous(), basis, centre)
    return factors


ALL = WIDTH * FIELDS

ABSORBED: dict[str, tuple[Callable[[Looked], Tensor], int]] = {
    "linear on one table": (lambda x: x.linear(x.own[0]), WIDTH),
    "cat on the last axis": (lambda x: x.linear(torch.cat(x.own, -1)), ALL),
    "dense features in between": (
        lambda x: x.linear(torch.cat([x.own[0], x.dense, x.own[1], x.dense[:, :1]], -1)),
        2 * WIDTH + 4,
    ),
    "cat of rows, flattened": (lambda x: x.linear(torch.cat(x.rows, -1).flatten(1)), ALL),
    "cat of rows over fields, flattened": (lambda x: x.linear(torch.cat(x.rows, 1).flatten(1)), ALL),
    "cat of rows over fields with a dense row": (
        lambda x: x.linear(
            torch.cat([x.rows[0], x.dense[:, :1].unsqueeze(1).expand(-1, 1, WIDTH), x.rows[1]], 1).flatten(1)
        ),
        3 * WIDTH,
    ),
    "stack over fields, reshaped": (lambda x: x.linear(torch.stack(x.own, 1).reshape(-1, ALL)), ALL),
    "stack on the last axis refused by none, one value": (
        lambda x: x.linear(torch.stack(x.own[:1], 1).squeeze(1)),
        WIDTH,
    ),
    "stacked table": (lambda x: x.linear(x.stacked.flatten(1)), ALL),
    "stacked table and others": (lambda x: x.linear(torch.cat([x.stacked.flatten(1), x.own[2]], 1)), ALL + WIDTH),
    "stacked table and rows over fields": (
        lambda x: x.linear(torch.cat([x.stacked, x.rows[2]], 1).flatten(1)),
        ALL + WIDTH,
    ),
    "linear per field of one table": (lambda x: x.narrow(x.stacked), 1),
    "linear per row of one table after fields were cut": (lambda x: x.narrow(x.stacked[:, 1:3]), 1),
    "slice of fields": (lambda x: x.linear(torch.stack(x.own, 1)[:, 1:3].flatten(1)), 2 * WIDTH),
    "slice of fields with a step": (lambda x: x.linear(torch.stack(x.own, 1)[:, ::2].flatten(1)), 2 * WIDTH),
    "slice across pieces of a concat": (lambda x: x.linear(torch.cat(x.own, 1)[:, 3:15]), 12),
    "half a table": (lambda x: x.linear(torch.cat([x.own[0][:, :3], x.own[1]], 1)), 3 + WIDTH),
    "select of a field": (lambda x: x.linear(torch.stack(x.own, 1)[:, 2]), WIDTH),
    "select of a field of one table": (lambda x: x.linear(x.stacked[:, 2]), WIDTH),
    "split into fields": (lambda x: x.linear(torch.cat(torch.split(torch.cat(x.own, 1), WIDTH, 1)[::-1], 1)), ALL),
    "split with sizes": (lambda x: x.linear(torch.cat(x.own, 1).split([WIDTH, ALL - WIDTH], 1)[1]), ALL - WIDTH),
    "chunk": (lambda x: x.linear(torch.cat(x.own, 1).chunk(2, 1)[1]), ALL // 2),
    "unbind": (lambda x: x.linear(torch.stack(x.own, 1).unbind(1)[3]), WIDTH),
    "unbind of a leading axis": (lambda x: x.linear(x.stacked.unbind(1)[3]), WIDTH),
    "fields in another order": (lambda x: x.linear(torch.cat([x.own[3], x.own[0], x.own[2]], 1)), 3 * WIDTH),
    "one table twice": (lambda x: x.linear(torch.cat([x.own[1], x.own[1]], 1)), 2 * WIDTH),
    "expanded over a new axis": (lambda x: x.narrow(x.own[0].unsqueeze(1).expand(-1, 3, -1)), 1),
    "expanded over fields and flattened": (
        lambda x: x.linear(x.own[0].unsqueeze(1).expand(-1, 3, -1).flatten(1)),
        3 * WIDTH,
    ),
    "transposed back and forth": (lambda x: x.linear(x.stacked.transpose(0, 1).transpose(0, 1).flatten(1)), ALL),
    "leading axes transposed": (lambda x: x.narrow(x.stacked.transpose(0, 1)), 1),
    "fields permuted": (lambda x: x.narrow(x.stacked.permute(1, 0, 2)), 1),
    "cat on the last axis of rows over fields": (
        lambda x: x.linear(torch.cat([torch.stack(x.own[:2], 1), torch.stack(x.own[2:], 1)], -1).flatten(1)),
        ALL,
    ),
    "squeezed and unsqueezed": (lambda x: x.linear(torch.cat(x.rows, -1).squeeze(1).unsqueeze(0).squeeze(0)), ALL),
    "dropout in eval": (lambda x: x.linear(nn.functional.dropout(x.own[0], 0.5, training=False)), WIDTH),
}

ON_CODES: dict[str, tuple[Callable[[Looked], Tensor], int, str]] = {
    "number": (lambda x: x.linear(x.own[0] * 0.5 - 2.0), WIDTH, "gate"),
    "number on the left": (lambda x: x.linear(3.0 - x.own[0] / 7.0), WIDTH, "linear"),
    "gate per row": (lambda x: x.linear(x.own[0] * x.dense[:, :1]), WIDTH, "gate"),
    "gate per row of a concat": (lambda x: x.linear(torch.cat([*x.own, x.dense], 1) * x.dense[:, :1]), ALL + 3, "gate"),
    "gate of a gate": (lambda x: x.linear(x.own[0] * x.dense[:, :1] * x.dense[:, 1:2]), WIDTH, "gate"),
    "gate per field": (lambda x: x.linear((torch.stack(x.own, 1) * x.dense[:, :1, None]).flatten(1)), ALL, "gate"),
    "a gate of its own per field": (
        lambda x: x.linear((torch.stack(x.own[:3], 1) * x.dense[:, :, None]).flatten(1)),
        3 * WIDTH,
        "gate",
    ),
    "gate per field of one table": (
        lambda x: x.linear((x.stacked[:, :3] * x.dense[:, :, None]).flatten(1)),
        3 * WIDTH,
        "gate",
    ),
    "quotient by a count": (lambda x: x.linear(x.own[0] / (x.dense[:, :1].abs() + 1)), WIDTH, "gate"),
    "masked mean of a sequence": (
        lambda x: x.linear(
            (x.stacked[:, :3] * (x.dense > 0)[:, :, None]).sum(1) / (x.dense > 0).sum(1, keepdim=True).clamp(min=1)
        ),
        WIDTH,
        "gate",
    ),
    "attention-weighted sum": (
        lambda x: x.linear((x.stacked[:, :3] * x.dense.softmax(1)[:, :, None]).sum(1)),
        WIDTH,
        "gate",
    ),
    "residual of a gate": (lambda x: x.linear(x.own[0] * x.dense[:, :1] + x.own[0]), WIDTH, "linear"),
    "vector cross layers": (
        lambda x: x.linear(_cross_network(torch.cat([*x.own, x.dense], 1), x)),
        ALL + 3,
        "linear",
    ),
    "difference of two lookups of one table": (
        lambda x: x.linear(x.stacked[:, 0] - x.stacked[:, 1]),
        WIDTH,
        "linear",
    ),
    "sum of two tables": (lambda x: x.linear(x.own[0] + x.own[1]), WIDTH, "linear"),
    "sum over fields": (lambda x: x.linear(torch.stack(x.own, 1).sum(1)), WIDTH, "linear"),
    "mean over fields": (lambda x: x.linear(torch.stack(x.own, 1).mean(1, keepdim=True).flatten(1)), WIDTH, "linear"),
    "sum over fields of one table": (lambda x: x.linear(x.stacked.sum(1)), WIDTH, "linear"),
    "mean over fields of one table": (lambda x: x.linear(x.stacked.mean(1)), WIDTH, "linear"),
    "one Linear for every field": (
        lambda x: x.linear(x.narrow(torch.stack(x.own, 1)).flatten(1)),
        5 * FIELDS,
        "linear",
    ),
}

EDGES: dict[str, tuple[Callable[[Looked], Tensor], int]] = {
    "sum over everything": (lambda x: x.stacked.sum() + x.dense.sum(), 1),
    "sum over the batch": (lambda x: x.stacked.sum(0), 1),
    "mean over the batch": (lambda x: x.own[0].mean(0, keepdim=True), 1),
    "constant gate and summand": (
        lambda x: x.linear(x.own[0] * x.narrow.weight[0] + x.narrow.weight[1]),
        WIDTH,
    ),
    "constant matrix as gate of fields": (lambda x: (torch.stack(x.own, 1) * x.narrow.weight[:FIELDS]).sum(1), 1),
    "gate that repeats the features": (lambda x: x.own[0][:, None] * x.dense[:, :, None], 1),
    "one number for all": (lambda x: x.linear(x.own[0] * x.dense.mean()), WIDTH),
    "difference that repeats the features": (lambda x: x.narrow(x.stacked[:, :1] - x.stacked), 1),
    "gate beside a sum": (lambda x: x.linear(x.own[0] * x.dense[:, :1] + x.own[1]), WIDTH),
    "gates in a concat, restored": (
        lambda x: torch.cat([x.own[0] * x.dense[:, :1], x.dense, x.own[1] * x.dense[:, 1:2]], 1).relu(),
        1,
    ),
    "gated fields, one selected": (
        lambda x: x.linear((torch.stack(x.own[:3], 1) * x.dense[:, :, None])[:, 1]),
        WIDTH,
    ),
    "gated rows, transposed": (lambda x: x.narrow((x.stacked[:, :3] * x.dense[:, :, None]).transpose(0, 1)), 1),
    "gated gated residual": (lambda x: x.linear((x.own[0] * x.dense[:, :1] + x.own[0]) * x.dense[:, 1:2]), WIDTH),
    "weighted sum": (lambda x: x.linear(torch.add(x.stacked[:, 0], x.stacked[:, 1], alpha=0.3)), WIDTH),
    "repeat": (lambda x: x.linear(x.own[0].repeat(2, 1)), WIDTH),
    "where": (lambda x: x.linear(torch.where(x.dense[:, :1] > 0, x.own[0], torch.zeros(()))), WIDTH),
    "quotient by a constant vector": (lambda x: x.linear(x.own[0] / x.narrow.weight[0]), WIDTH),
    "two Linears on a sum": (lambda x: x.narrow(x.narrow(x.own[0] + x.own[1]).repeat(1, 2)[:, :WIDTH]), 1),
}

SUMMED: dict[str, tuple[Callable[[Looked], Tensor], int]] = {
    "sum of all features": (lambda x: torch.cat(x.own, 1).sum(1, keepdim=True), 1),
    "sum of the features of every field": (lambda x: torch.stack(x.own, 1).sum(2), 1),
    "mean of the features of every field": (lambda x: torch.stack(x.own, 1).mean(-1, keepdim=True), 1),
    "matrix product with a constant": (lambda x: x.own[0] @ x.narrow.weight.T, 1),
    "contraction with a constant": (lambda x: torch.tensordot(x.own[0], x.narrow.weight, ([1], [1])), 1),
}


def _cross_network(features: Tensor, x: Looked) -> Tensor:
    crossed = features
    for layer in range(3):
        crossed = features * (x.dense[:, layer : layer + 1] + crossed.sum(1, keepdim=True)) + 0.25 + crossed
    return crossed


RESTORED: dict[str, tuple[Callable[[Looked], Tensor], int, str]] = {
    "relu": (lambda x: x.own[0].relu(), 1, "nonlinear"),
    "product of two tables": (lambda x: x.own[0] * x.own[1], 1, "interaction"),
    "relu of fields": (lambda x: torch.stack(x.own, 1).relu(), 1, "nonlinear"),
    "relu of one table's fields": (lambda x: x.stacked.relu(), 1, "nonlinear"),
    "relu of one table's fields, flattened": (lambda x: x.stacked.flatten(1).relu(), 1, "nonlinear"),
    "relu of a mix with dense features": (lambda x: torch.cat([x.own[0], x.dense, x.own[1]], 1).relu(), 1, "nonlinear"),
    "relu of half a table": (lambda x: x.own[0][:, 1:4].relu(), 1, "nonlinear"),
    "sum of dense and looked-up features": (lambda x: x.own[0] + x.dense[:, :1], 1, "linear"),
    "a gate that differs along the features": (lambda x: x.own[0] * x.dense.repeat(1, 2), 1, "interaction"),
    "a quotient of features": (lambda x: x.dense[:, :1] / x.own[0], 1, "interaction"),
    "outer product": (lambda x: torch.matmul(x.own[0].unsqueeze(2), x.own[1].unsqueeze(1)), 1, "interaction"),
    "features in front of fields": (lambda x: x.stacked.transpose(1, 2).contiguous(), 1, "move"),
    "an operator without a law": (lambda x: torch.special.bessel_j0(x.own[0]), 1, "unknown"),
    "one feature": (lambda x: x.own[0][:, 2], 1, "move"),
    "softmax": (lambda x: x.stacked.softmax(1), 1, "nonlinear"),
    "the output itself": (lambda x: torch.cat(x.own, 1), 1, "output"),
}


@functools.cache
def build(function: Callable[[Looked], Tensor], width: int) -> afm_fx.Program:
    return afm_fx.capture(Case(function, max(width, 1)), inputs()).to(torch.float64)


def rewritten(program: afm_fx.Program) -> tuple[SinkCodes, afm_fx.Program]:
    clone = clone_graph_module(program.graph_module)
    sink = SinkCodes(orthonormal_factors(program.graph_module))
    sink(clone)
    return sink, program.with_graph(clone)


def assert_equal(one: afm_fx.Program, other: afm_fx.Program) -> None:
    for rows in (1, 3, 8):
        batch = inputs(rows)
        torch.testing.assert_close(other.run(batch), one.run(batch), rtol=1e-10, atol=1e-10)


def assert_absorbed(program: afm_fx.Program) -> afm_fx.Program:
    """Every use takes the decoder in; returns the rewritten program."""
    sink, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    assert {verdict.fate for verdict in sink.verdicts} == {Fate.ABSORBED}
    return low_rank


def assert_kept_on_codes(function: Callable[[Looked], Tensor], width: int, law: str) -> None:
    """A law keeps the value on codes until a Linear takes the decoder in."""
    program = build(function, width)
    sink, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    assert {verdict.fate for verdict in sink.verdicts} == {Fate.ON_CODES, Fate.ABSORBED}, sink.verdicts
    assert law in {verdict.law for verdict in sink.verdicts if verdict.fate is Fate.ON_CODES}
    assert "restore" not in makers(low_rank)


def assert_restored(function: Callable[[Looked], Tensor], width: int, law: str) -> afm_fx.Program:
    """Every use needs the features, for one law and a reason; returns the rewritten program."""
    program = build(function, width)
    sink, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    assert {verdict.fate for verdict in sink.verdicts} == {Fate.RESTORED}
    assert {verdict.law for verdict in sink.verdicts} == {law}
    assert all(len(verdict.reason) > 20 for verdict in sink.verdicts)
    return low_rank


def assert_analysed_as_rewritten(program: afm_fx.Program) -> None:
    """The analysis has the verdicts and the parameters of the rewrite, and leaves the module as it is."""
    module = program.graph_module
    before = module.print_readable(print_output=False)
    factors = orthonormal_factors(module, ("embedding", "linear"))
    analysis = analyze(module, ranks={name: factor.rank for name, factor in factors.items()})
    assert module.print_readable(print_output=False) == before
    clone = clone_graph_module(module)
    sink = SinkCodes(factors, strict=True)
    sink(clone)
    assert analysis.verdicts == sink.verdicts
    assert cost(analysis.rewritten, CostKind.PARAMETERS) == cost(clone, CostKind.PARAMETERS)
    assert_equal(program, program.with_graph(clone))


def makers(program: afm_fx.Program) -> set[str | None]:
    """The rules that made the graph's nodes."""
    return {node.meta.get(PROVENANCE) for node in program.graph_module.graph.nodes}


@pytest.mark.parametrize("name", ABSORBED)
def test_absorbed_without_any_restore(name: str) -> None:
    low_rank = assert_absorbed(build(*ABSORBED[name]))
    assert "restore" not in makers(low_rank)
    assert not any(name.endswith("decoder.weight") for name, _ in low_rank.graph_module.named_parameters())


@pytest.mark.parametrize("name", ON_CODES)
def test_kept_on_codes_until_a_linear_takes_them_in(name: str) -> None:
    assert_kept_on_codes(*ON_CODES[name])


@pytest.mark.parametrize("name", SUMMED)
def test_sums_and_constant_matrices_are_absorbed(name: str) -> None:
    assert_absorbed(build(*SUMMED[name]))


@pytest.mark.parametrize(
    "name", ["gate per row", "a gate of its own per field", "vector cross layers", "sum over fields"]
)
def test_what_was_kept_on_codes_is_restored_exactly(name: str) -> None:
    function = ON_CODES[name][0]
    program = build(lambda x: function(replace(x, linear=torch.relu)), 1)
    sink, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    assert {verdict.fate for verdict in sink.verdicts} >= {Fate.ON_CODES, Fate.RESTORED}


@pytest.mark.parametrize("name", RESTORED)
def test_restored_just_before(name: str) -> None:
    low_rank = assert_restored(*RESTORED[name])
    tables = [name for name, _ in low_rank.graph_module.named_parameters() if name.startswith(("tables", "shared"))]
    assert tables
    assert not any(name.endswith((".0.weight", "shared.weight")) for name in tables)


@pytest.mark.parametrize("name", [*ABSORBED, *ON_CODES, *EDGES, *SUMMED, *RESTORED])
def test_the_analysis_says_what_the_rewrite_does(name: str) -> None:
    function, width = (ABSORBED | ON_CODES | EDGES | SUMMED | RESTORED)[name][:2]
    assert_analysed_as_rewritten(build(function, width))


def test_one_restore_serves_all_uses_while_another_is_absorbed() -> None:
    program = build(lambda x: x.linear(x.own[0]).sum(1) + x.own[0].tanh().sum(1) + x.own[0].relu().sum(1), WIDTH)
    sink, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    fates = {verdict.operator: verdict.fate for verdict in sink.verdicts}
    assert fates == {"aten.linear": "absorbed", "aten.tanh": "restored", "aten.relu": "restored"}
    restores = [node for node in low_rank.graph_module.graph.nodes if node.meta.get(PROVENANCE) == "restore"]
    assert [node.target for node in restores if node.op == "call_function"] == [aten.linear.default]


def test_verdicts_carry_path_operator_and_the_users_source_line() -> None:
    program = build(lambda x: x.linear(torch.cat(x.own, 1).relu()), ALL)
    verdict = analyze(program.graph_module).verdicts[0]
    assert verdict.site == "tables.0"
    assert verdict.operator == "aten.relu"
    assert verdict.path == ("embedding", "cat", "relu")
    assert "test_sink_codes.py" in verdict.source
    assert "return self.function(looked)" in verdict.source


def test_a_factored_linear_takes_codes_in_and_gives_codes_out() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(ROWS, WIDTH)
            self.first, self.second = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.second(self.first(self.table(ids)).relu())

    program = afm_fx.capture(Deep(), torch.randint(0, ROWS, (BATCH,))).to(torch.float64)
    module = clone_graph_module(program.graph_module)
    SinkCodes(orthonormal_factors(module, ("embedding", "linear")))(module)
    ids = torch.randint(0, ROWS, (7,))
    torch.testing.assert_close(module(ids), program.run(ids), rtol=1e-10, atol=1e-10)
    calls = [node.target for node in module.graph.nodes if node.op == "call_function"]
    linear = aten.linear.default
    assert calls == [aten.embedding.default, linear, linear, aten.relu.default, linear, linear]


def test_every_new_node_says_who_made_it_and_what_it_is() -> None:
    program = build(
        lambda x: x.linear(torch.cat([*x.own, x.dense], 1)) + x.stacked.relu().sum((1, 2))[:, None], ALL + 3
    )
    known = {node.name for node in program.graph_module.graph.nodes}
    _, low_rank = rewritten(program)
    new = [node for node in low_rank.graph_module.graph.nodes if node.name not in known]
    assert new
    for node in new:
        assert node.meta.get(PROVENANCE), node
        assert node.meta.get("val") is not None, node


def test_values_in_the_metadata_are_those_of_a_run() -> None:
    program = build(lambda x: x.narrow(x.stacked) + torch.stack(x.own, 1).relu().sum(), 1)
    _, low_rank = rewritten(program)
    shapes = {}

    def watch(node: torch.fx.Node, value: object) -> None:
        if isinstance(value, Tensor):
            shapes[node] = (tuple(value.shape), value.dtype)

    ids, dense = inputs(8)
    WatchedRun(low_rank.graph_module, watch).run_flat([ids, dense.double()])
    assert len(shapes) > 10
    for node, (shape, dtype) in shapes.items():
        value = node.meta["val"]
        assert value.dtype == dtype, node
        assert len(value.shape) == len(shape), node
        assert all(size == real for size, real in zip(value.shape, shape, strict=True) if isinstance(size, int)), node


def test_the_rewrite_is_deterministic() -> None:
    program = build(*ABSORBED["dense features in between"])
    factors = orthonormal_factors(program.graph_module)
    texts = set()
    for _ in range(2):
        clone = clone_graph_module(program.graph_module)
        SinkCodes(factors, strict=True)(clone)
        texts.add(str(clone.graph))
    assert len(texts) == 1


def test_gradients_reach_the_factors() -> None:
    program = build(lambda x: x.linear(x.own[0]) + torch.stack(x.own, 1).relu().sum(), WIDTH)
    _, low_rank = rewritten(program)
    low_rank(*inputs()).sum().backward()
    used = {name: parameter.grad for name, parameter in low_rank.graph_module.named_parameters()}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in used.values()), used.keys()


def test_a_factor_for_no_site_or_of_another_width_is_refused() -> None:
    program = build(*ABSORBED["linear on one table"])
    factor = next(iter(orthonormal_factors(program.graph_module).values()))
    wrong = torch.eye(WIDTH + 1, dtype=torch.float64)
    cases: list[tuple[dict[str, Factor], str]] = [
        ({"absent": factor}, "no site 'absent'"),
        ({"tables.0": factor_of(wrong, wrong, None)}, "6 wide, its factor 7"),
    ]
    for factors, message in cases:
        with pytest.raises(TableIndexError, match=message):
            SinkCodes(factors, strict=True).rewrite(clone_graph_module(program.graph_module))


def test_the_count_is_exact_for_some_sites_where_a_dense_summand_changes_the_rewrite() -> None:
    program = build(lambda x: x.linear(x.own[0] + x.own[1] + x.own[2]), WIDTH)
    factors = orthonormal_factors(program.graph_module)
    for names in (["tables.0"], ["tables.0", "tables.2"], list(factors)):
        clone = clone_graph_module(program.graph_module)
        SinkCodes({name: factors[name] for name in names})(clone)
        analysis = analyze(program.graph_module, ranks={name: factors[name].rank for name in names})
        assert cost(analysis.rewritten, CostKind.PARAMETERS) == cost(clone, CostKind.PARAMETERS), names
        assert_equal(program, program.with_graph(clone))
