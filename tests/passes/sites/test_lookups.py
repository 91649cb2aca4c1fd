"""Lookups of every kind: the codes take the table's place, and nothing changes at full rank."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

import afm_fx
from afm_fx.errors import BatchError
from afm_fx.planning.cost import CostKind, cost
from passes.codes.factor import factor_of
from passes.graph import aten, clone_graph_module
from passes.graph.errors import TableIndexError
from passes.sink_codes import SinkCodes, analyze
from passes.sites.lookups import bag_length
from passes.sites.sites import Site, find_sites
from tests.passes.test_sink_codes import orthonormal_factors

BATCH, LENGTH, ROWS, WIDTH = 5, 4, 11, 6

Function = Callable[["Model", Tensor, Tensor], Tensor]


class Model(nn.Module):
    """A table, and one function of it, ids [batch, LENGTH] and weights [batch, LENGTH]."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.table, self.other = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
        self.linear = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        return self.function(self, ids, weights)


def inputs(rows: int = BATCH) -> tuple[Tensor, Tensor]:
    return torch.randint(0, ROWS, (rows, LENGTH)), torch.rand(rows, LENGTH)


def capture(function: Function) -> afm_fx.Program:
    return afm_fx.capture(Model(function).eval(), inputs())


def site_of(program: afm_fx.Program, name: str = "table") -> Site:
    return next(site for site in find_sites(program.graph_module) if site.name == name)


BAGS: dict[str, tuple[Function, bool]] = {
    "sum of a bag": (lambda m, ids, _: m.linear(embedding_bag(ids, m.table.weight, mode="sum")), False),
    "mean of a bag": (lambda m, ids, _: m.linear(embedding_bag(ids, m.table.weight, mode="mean")), True),
    "sum of a bag with a padding id": (
        lambda m, ids, _: m.linear(embedding_bag(ids, m.table.weight, mode="sum", padding_idx=2)),
        False,
    ),
    "mean of a bag with a padding id": (
        lambda m, ids, _: m.linear(embedding_bag(ids, m.table.weight, mode="mean", padding_idx=2)),
        False,
    ),
    "weighted sum of a bag": (
        lambda m, ids, weights: m.linear(
            embedding_bag(ids, m.table.weight, mode="sum", per_sample_weights=weights, padding_idx=1)
        ),
        False,
    ),
    "sum of a bag weighted by features": (
        lambda m, ids, weights: m.linear(
            embedding_bag(ids, m.table.weight, mode="sum", per_sample_weights=m.linear(m.other(ids))[:, :, 0] * weights)
        ),
        False,
    ),
    "mean of bags that begin anywhere": (
        lambda m, ids, _: m.linear(
            embedding_bag(ids.reshape(-1), m.table.weight, torch.arange(0, ids.shape[0]) * 3, mode="mean")
        ),
        False,
    ),
    "sum of bags with the last end": (
        lambda m, ids, _: m.linear(
            embedding_bag(
                ids.reshape(-1),
                m.table.weight,
                torch.arange(0, ids.shape[0] + 1) * LENGTH,
                mode="sum",
                include_last_offset=True,
            )
        ),
        False,
    ),
    "bag that may be sparse in training": (
        lambda m, ids, _: m.linear(embedding_bag(ids, m.table.weight, mode="mean", sparse=True)),
        True,
    ),
}

ROW_LOOKUPS: dict[str, tuple[Function, bool]] = {
    "index_select": (lambda m, ids, _: m.linear(torch.index_select(m.table.weight, 0, ids[:, 1])), True),
    "index by a matrix of ids": (lambda m, ids, _: m.linear(m.table.weight[ids]), True),
    "index that counts from the end": (lambda m, ids, _: m.linear(m.table.weight[ids - 5]), True),
    "index of rows and all columns": (lambda m, ids, _: m.linear(m.table.weight[ids[:, 0], :]), True),
    "gather of expanded ids": (
        lambda m, ids, _: m.linear(torch.gather(m.table.weight, 0, ids[:, :1].expand(-1, WIDTH))),
        True,
    ),
    "gather of repeated ids": (
        lambda m, ids, _: m.linear(torch.gather(m.table.weight, 0, ids[:, :1].repeat(1, WIDTH))),
        True,
    ),
    "three kinds of lookup of one table": (
        lambda m, ids, _: m.linear(
            torch.cat([m.table(ids[:, 0]), m.table.weight[ids[:, 1]], embedding_bag(ids, m.table.weight, mode="mean")])
        ),
        True,
    ),
    "rows and their sums of one table": (
        lambda m, ids, _: m.linear(m.table(ids[:, 0]) - embedding_bag(ids, m.table.weight, mode="sum")),
        False,
    ),
}

LOOKUPS = BAGS | ROW_LOOKUPS


@pytest.mark.parametrize("name", LOOKUPS)
def test_the_capture_is_the_model_bit_for_bit(name: str) -> None:
    model = Model(LOOKUPS[name][0]).eval()
    program = afm_fx.capture(model, inputs())
    for rows in (2, 9):
        batch = inputs(rows)
        assert torch.equal(program.run(batch), model(*batch))


@pytest.mark.parametrize("name", LOOKUPS)
def test_codes_take_the_tables_place(name: str) -> None:
    function, centred = LOOKUPS[name]
    program = capture(function).to(torch.float64)
    module = program.graph_module
    site = site_of(program)
    assert (site.refusal, site.centred) == (None, centred)
    factors = orthonormal_factors(module, ("embedding", "linear"))
    analysis = analyze(module, ranks={name: factor.rank for name, factor in factors.items()})
    clone = clone_graph_module(module)
    sink = SinkCodes(factors)
    sink(clone)
    assert analysis.verdicts == sink.verdicts
    assert "table" in {verdict.site for verdict in sink.verdicts}
    assert cost(analysis.rewritten, CostKind.PARAMETERS) == cost(clone, CostKind.PARAMETERS)
    assert "table.weight" not in dict(clone.named_parameters())
    for rows in (1, 3, 8):
        batch = inputs(rows)
        torch.testing.assert_close(program.with_graph(clone).run(batch), program.run(batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize("basis", ["afm", "weight_svd"])
def test_calibrated_and_compressed_at_full_rank_nothing_changes_and_at_rank_two_the_count_is_right(
    name: str, basis: str
) -> None:
    program = capture(LOOKUPS[name][0]).to(torch.float64)
    statistics = afm_fx.calibrate(program, [inputs(32) for _ in range(3)])
    full = afm_fx.apply_plan(program, afm_fx.make_plan(program, statistics, afm_fx.FullRank(), basis=basis))
    batch = inputs(7)
    torch.testing.assert_close(full.run(batch), program.run(batch), rtol=1e-10, atol=1e-10)
    plan = afm_fx.make_plan(program, statistics, afm_fx.Fixed(embedding=2, linear=2), basis=basis)
    low_rank = afm_fx.apply_plan(program, plan)
    assert plan.factors["table"].rank == 2
    assert low_rank.parameter_count() == plan.parameters_after
    assert low_rank.run(batch).shape == program.run(batch).shape


def test_a_bag_is_calibrated_on_what_it_pools() -> None:
    program = capture(BAGS["sum of a bag"][0]).to(torch.float64)
    ids, weights = inputs(50)
    moments = afm_fx.calibrate(program, [(ids, weights)]).moments["table"]
    table = program.graph_module.get_parameter("table.weight").detach()
    pooled = table[ids].sum(1)
    assert moments.count == 50
    torch.testing.assert_close(moments.mean, pooled.mean(0), rtol=1e-12, atol=1e-12)


def test_an_empty_bag_stays_zero() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.linear = nn.EmbeddingBag(ROWS, WIDTH, mode="mean"), nn.Linear(WIDTH, 3)

        def forward(self, ids: Tensor, starts: Tensor, dense: Tensor) -> Tensor:
            return self.linear(self.bag(ids, starts)) + dense

    def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        starts = torch.tensor([0, 0, 3, 3, 3, 9, 12])[:rows]  # bags 0, 2 and 3 are empty
        return torch.randint(0, ROWS, (12,)), starts, torch.randn(rows, 3)

    program = afm_fx.capture(Ragged().eval(), batch(5)).to(torch.float64)
    compressed = afm_fx.compress(program, [batch(7) for _ in range(4)], afm_fx.FullRank())
    assert compressed.plan.factors["bag"].offset is None
    for rows in (1, 5, 7):
        given = batch(rows)
        torch.testing.assert_close(compressed.program.run(given), program.run(given), rtol=1e-10, atol=1e-10)


def test_a_bag_in_its_decomposed_form_is_the_same_site() -> None:
    exported = torch.export.export(
        Model(BAGS["mean of a bag"][0]).eval(), inputs(), dynamic_shapes=({0: torch.export.Dim("rows")},) * 2
    ).run_decompositions()
    program = afm_fx.capture(exported).to(torch.float64)
    targets = {node.target for node in program.graph_module.graph.nodes}
    assert targets & {aten._embedding_bag.default, aten._embedding_bag_forward_only.default}
    assert site_of(program).refusal is None
    compressed = afm_fx.compress(program, [inputs(32)], afm_fx.FullRank())
    assert "table" in compressed.plan.factors
    batch = inputs(7)
    torch.testing.assert_close(compressed.program.run(batch), program.run(batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "length"), [("sum of a bag", LENGTH), ("mean of bags that begin anywhere", None)])
def test_the_length_of_bags_is_known_where_the_ids_are_a_matrix(name: str, length: int | None) -> None:
    graph = capture(BAGS[name][0]).graph_module.graph
    bag = next(node for node in graph.nodes if node.target is aten.embedding_bag.padding_idx)
    assert bag_length(bag) == length


REFUSED: dict[str, tuple[Function, str]] = {
    "maximum of a bag": (
        lambda m, ids, _: m.linear(embedding_bag(ids, m.table.weight, mode="max")),
        "its rows are pooled by their maximum",
    ),
    "maximum of a bag beside a lookup": (
        lambda m, ids, _: m.linear(embedding_bag(ids, m.table.weight, mode="max") + m.table(ids[:, 0])),
        "its rows are pooled by their maximum",
    ),
    "max_norm": (
        lambda m, ids, _: m.linear(nn.functional.embedding(ids, m.table.weight, max_norm=1.0)),
        "the table has max_norm",
    ),
    "max_norm of a bag": (
        lambda m, ids, _: m.linear(embedding_bag(ids, m.table.weight, max_norm=1.0)),
        "the table has max_norm",
    ),
    "tied": (lambda m, ids, _: m.table(ids) @ m.table.weight.T, "also used by aten.permute"),
    "tied to a Linear": (
        lambda m, ids, _: nn.functional.linear(embedding_bag(ids, m.table.weight), m.table.weight),
        "also used by aten.linear",
    ),
    "rows chosen by a mask": (
        lambda m, ids, _: m.linear(m.table(ids)) + m.table.weight[torch.arange(ROWS) > 4].sum(),
        "also used by aten.index",
    ),
    "one column": (
        lambda m, ids, _: m.linear(m.table.weight[ids]).sum(1) + m.table.weight[:, torch.tensor([2])].sum(),
        "also used by aten",
    ),
    "more of a bag than its rows": (
        lambda m, ids, _: m.linear(_with_sizes(ids, m.table.weight)),
        "the model reads more of an embedding bag than the pooled rows",
    ),
}


def _with_sizes(ids: Tensor, table: Tensor) -> Tensor:
    starts = torch.arange(0, ids.shape[0] * LENGTH, LENGTH)
    pooled, _, sizes, _ = torch.embedding_bag(table, ids.reshape(-1), starts, False, 1)
    return pooled * sizes[:, None]


@pytest.mark.filterwarnings("ignore:the model changes")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason_and_left_as_it_was(name: str) -> None:
    function, reason = REFUSED[name]
    program = capture(function).to(torch.float64)
    refusal = site_of(program).refusal
    assert refusal is not None
    assert reason in refusal
    chains = [chain for chain in afm_fx.explain(program).chains if chain.site.name == "table"]
    assert [(chain.verdict.fate, chain.verdict.reason) for chain in chains] == [("refused", refusal)]
    compressed = afm_fx.compress(program, [inputs(32)], afm_fx.FullRank())
    assert compressed.plan.refused["table"] == refusal
    assert "table.weight" in dict(compressed.program.graph_module.named_parameters())
    batch = inputs(7)
    torch.testing.assert_close(compressed.program.run(batch), program.run(batch), rtol=1e-10, atol=1e-10)


def test_a_factor_with_an_offset_is_refused_for_a_sum_of_rows() -> None:
    program = capture(BAGS["sum of a bag"][0])
    basis = torch.eye(WIDTH, dtype=torch.float64)
    with pytest.raises(TableIndexError, match="must stay zero or are summed"):
        SinkCodes({"table": factor_of(basis, basis, torch.ones(WIDTH).double())}).rewrite(
            clone_graph_module(program.graph_module)
        )


def test_a_bag_on_codes_is_one_bag() -> None:
    program = capture(BAGS["weighted sum of a bag"][0])
    module = clone_graph_module(program.graph_module)
    SinkCodes(orthonormal_factors(module))(module)
    calls = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert calls.count(aten.embedding_bag.padding_idx) == 1
    assert calls[-2:] == [operator.getitem, aten.linear.default]


@pytest.mark.parametrize("name", ["sum of a bag", "weighted sum of a bag", "index_select", "index by a matrix of ids"])
def test_an_id_outside_the_table_is_named_with_its_input_and_row(name: str) -> None:
    program = capture(LOOKUPS[name][0])
    ids, weights = inputs()
    ids[3, 1] = 99
    lowest = -ROWS if name.startswith("index by") else 0
    message = rf"row 3: id 99 of input 'ids'.* is outside table 'table' \(ids {lowest} to {ROWS - 1}\)"
    with pytest.raises(BatchError, match=f"batch 0, {message}"):
        program.run((ids, weights))
    with pytest.raises(BatchError, match=f"batch 1, {message}"):
        afm_fx.calibrate(program, [inputs(), (ids, weights)])


def test_an_error_that_no_id_causes_stays_what_it_is() -> None:
    program = capture(ROW_LOOKUPS["index_select"][0])
    node = next(node for node in program.graph_module.graph.nodes if node.target is aten.embedding.default)
    node.target = _fails
    program.graph_module.recompile()
    with pytest.raises(RuntimeError, match="out of everything"):
        program.run(inputs())


def _fails(*_: object) -> Tensor:
    raise RuntimeError("out of everything")
