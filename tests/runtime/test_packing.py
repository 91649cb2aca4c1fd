from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

import afm_fx
import passes.serving.packing
from afm_fx.errors import AfmFxError, BatchError, UserError
from afm_fx.runtime.packing import pack
from passes import SinkCodes, factor_of, find_sites
from passes.graph import GraphPass, clone_graph_module
from passes.serving import pack_graph
from passes.sites import JoinTables
from tests.passes.serving.test_pack_tables import SIZES, Wide, wide_inputs
from tests.passes.serving_checks import operators
from tests.wide_and_deep import rows_of_ids, wide_and_deep


def wide_program() -> afm_fx.Program:
    return afm_fx.capture(Wide().double().eval(), wide_inputs(3))


def test_pack_leaves_the_program_given_as_it_is_and_reports_what_it_did():
    program = wide_program()
    before = str(program.graph_module.graph)
    packed = pack(program)
    assert str(program.graph_module.graph) == before
    assert (packed.report.before.lookups, packed.report.after.lookups) == (12, 1)
    assert packed.report.after.operators < packed.report.before.operators
    assert "12 lookups in one" in packed.report.table()
    batch = wide_inputs(5)
    torch.testing.assert_close(packed.program.run(batch), program.run(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [-1, SIZES[1]])
def test_a_packed_program_refuses_an_id_outside_its_own_table(bad: int):
    packed = afm_fx.pack(wide_program()).program
    (batch,) = wide_inputs(4)
    batch[2, 1] = bad
    with pytest.raises(BatchError, match=rf"row 2: id {bad} of input 'x', column 1 is outside table 'tables.1'"):
        packed.run((batch,))


def test_an_unknown_choice_for_other_ids_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="unchecked, error"):
        afm_fx.pack(wide_program(), out_of_range="ignore")


@pytest.mark.parametrize("choice", ["unchecked", "error"])
def test_every_choice_exports_and_onnx_runtime_agrees(choice: str, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "packed.onnx"
    report = afm_fx.export_onnx(afm_fx.pack(wide_program(), out_of_range=choice).program, path)
    assert dict(report.operators)["Gather"] == 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (batch,) = wide_inputs(4)
    batch[2, 1] = SIZES[1] + 1
    if choice == "error":
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, {"x": batch.numpy()})
    else:
        assert session.run(None, {"x": batch.numpy()})[0].shape == (4, 1)


@pytest.mark.parametrize("broken", ["PackTables", "FoldConstants", "MergeLinears"])
def test_a_rewrite_that_fails_is_left_out_and_named(broken: str, monkeypatch: pytest.MonkeyPatch):
    def fail(self: GraphPass, graph_module: GraphModule) -> None:
        graph_module.graph.output(None)
        raise AssertionError("a defect")

    monkeypatch.setattr(getattr(passes.serving.packing, broken), "rewrite", fail)
    program, batch = wide_program(), wide_inputs(6)
    packed, report = (change := afm_fx.pack(program)).program, change.report
    assert [each.name for each in report.failed] == [broken]
    assert f"{broken} failed and was left out" in report.table()
    assert "AssertionError: a defect" in report.table()
    assert report.after.operators < report.before.operators  # by the other rewrites
    assert bool(report.tables) == (broken != "PackTables")
    torch.testing.assert_close(packed.run(batch), program.run(batch), rtol=1e-10, atol=1e-10)
    with pytest.raises(AfmFxError, match=broken):
        afm_fx.pack(program, strict=True)


def test_compress_packs_unless_told_not_to():
    program = wide_program()
    batches = [wide_inputs(40)]
    packed = afm_fx.compress(program, batches, afm_fx.Fixed(embedding=2, linear=None))
    plain = afm_fx.compress(program, batches, afm_fx.Fixed(embedding=2, linear=None), pack=False)
    assert plain.packing is None
    assert packed.packing is not None
    assert packed.packing.after.lookups == 1
    batch = wide_inputs(6)
    torch.testing.assert_close(packed.program.run(batch), plain.program.run(batch), rtol=1e-10, atol=1e-10)


def test_a_factorization_machine_on_codes_of_different_widths_takes_few_operators():
    module = clone_graph_module(wide_and_deep().graph_module)
    JoinTables()(module)
    factors = {}
    for rank, site in enumerate((site for site in find_sites(module) if site.kind == "embedding"), 2):
        basis = torch.linalg.qr(torch.randn(site.width, site.width, dtype=torch.float64))[0][:, :rank]
        factors[site.name] = factor_of(basis.mT.contiguous(), basis, torch.randn(site.width, dtype=torch.float64))
    SinkCodes(factors)(module)
    packed = pack_graph(module)[0]
    counts, ids = operators(packed), rows_of_ids(20)
    torch.testing.assert_close(packed(ids), module(ids), rtol=1e-12, atol=1e-12)
    assert counts.total() <= 25
    products = {name: counts[name] for name in ("embedding", "linear", "addmm", "mul", "square", "cat", "slice")}
    assert products == {"embedding": 1, "linear": 7, "addmm": 2, "mul": 2, "square": 1, "cat": 0, "slice": 0}


class Interests(torch.nn.Module):
    """SINE: the concepts that score highest are looked up again; a bag weighs its rows by looked-up numbers."""

    def __init__(self, rank_concepts: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.items, self.concepts = torch.nn.Embedding(20, 4), torch.nn.Embedding(20, 4)
        self.users = torch.nn.ModuleList(torch.nn.Embedding(20, 4) for _ in range(5))
        self.bag, self.weight = torch.nn.EmbeddingBag(20, 4, mode="sum"), torch.nn.Embedding(20, 1)
        self.rank_concepts = rank_concepts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read = self.items(x[:, :5]).mean(1)
        found = self.rank_concepts(read @ self.concepts.weight.T)
        bag = self.bag(x[:, :5], per_sample_weights=self.weight(x[:, :5]).squeeze(-1))
        users = [table(x[:, 5 + place]) for place, table in enumerate(self.users)]
        return torch.cat([read, self.concepts(found).sum(1), *users, bag], 1).tanh().sum(1)


@pytest.mark.parametrize(
    "rank_concepts", [lambda scores: scores.argsort(-1)[:, :2], lambda scores: scores.topk(2, -1).indices]
)
def test_ids_that_are_ranks_of_looked_up_scores_and_weighted_bags_are_packed(
    rank_concepts: Callable[[torch.Tensor], torch.Tensor],
):
    program = afm_fx.capture(Interests(rank_concepts).double().eval(), torch.randint(0, 20, (3, 10)))
    statistics = afm_fx.calibrate(program, [torch.randint(0, 20, (50, 10))])
    plan = afm_fx.make_plan(program, statistics, afm_fx.FullRank(), basis="afm")
    batch = torch.randint(0, 20, (7, 10))
    for given in (program, afm_fx.apply_plan(program, plan, strict=True)):
        packed = afm_fx.pack(given, strict=True)
        assert packed.report.after.operators < packed.report.before.operators
        torch.testing.assert_close(packed.program.run(batch), program.run(batch), rtol=1e-9, atol=1e-9)
