"""Tables of rank 0: one constant row stands for all, and the table, its lookup and its weights are gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.errors import PolicyError
from passes.graph import aten
from tests.graphs import FIELDS, Tower, tower_batch

POLICY = afm_fx.Fixed(embedding=2, linear=None, overrides={"tables.1": 0})


@pytest.fixture(scope="module")
def compressed() -> afm_fx.Compressed:
    torch.manual_seed(1)
    batches = [tower_batch(400) for _ in range(3)]
    return afm_fx.compress(Tower().double(), [(ids, dense.double()) for ids, dense in batches], POLICY, pack=False)


def test_the_rewrite_computes_the_model_with_the_mean_row_in_place_of_the_table(compressed: afm_fx.Compressed) -> None:
    mean = compressed.statistics.moments["tables.1"].mean
    filled = compressed.original.clone()
    with torch.no_grad():
        filled.graph_module.get_parameter("tables.1.weight").copy_(mean)
    expected = afm_fx.apply_plan(filled, compressed.plan)
    ids, dense = tower_batch(50)
    torch.testing.assert_close(
        compressed.program.run((ids, dense.double())), expected.run((ids, dense.double())), rtol=1e-12, atol=1e-12
    )


def test_the_table_its_lookup_and_its_weights_are_gone(compressed: afm_fx.Compressed) -> None:
    nodes = compressed.program.graph_module.graph.nodes
    assert sum(node.target is aten.embedding.default for node in nodes) == FIELDS - 1
    assert not [name for name, _ in compressed.program.graph_module.named_parameters() if name.startswith("tables.1")]
    assert compressed.plan.parameters_after == compressed.program.parameter_count()
    (site,) = [site for site in compressed.plan.sites if site.name == "tables.1"]
    assert site.rank == 0


def test_a_plan_with_a_constant_row_is_saved_loaded_packed_and_exported(
    compressed: afm_fx.Compressed, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    compressed.plan.save(tmp_path / "plan.safetensors")
    again = afm_fx.apply_plan(compressed.original, afm_fx.Plan.load(tmp_path / "plan.safetensors"))
    packed = afm_fx.pack(again).program
    ids, dense = tower_batch(9)
    torch.testing.assert_close(
        packed.run((ids, dense.double())), compressed.program.run((ids, dense.double())), rtol=1e-12, atol=1e-12
    )
    report = afm_fx.export_onnx(packed.to(torch.float32), tmp_path / "model.onnx")
    assert len(report.inputs) == 2


class OneTable(nn.Module):
    """Nothing but a table and a Linear: with the table constant, so is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.table(ids))


def test_a_model_of_constants_alone_still_has_a_row_per_row(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    policy = afm_fx.Fixed(linear=None, overrides={"table": 0})
    made = afm_fx.compress(OneTable(), [torch.arange(20), torch.arange(20)], policy)
    found = made.program.run(torch.arange(7))
    assert found.shape == (7, 2)
    assert (found == found[0]).all()
    assert made.program.parameter_count() <= 2
    assert afm_fx.export_onnx(made.program, tmp_path / "constant.onnx").inputs == ("ids",)


def test_a_bag_is_refused_a_constant_row() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(20, 4, mode="sum")
            self.last = nn.Linear(4, 1)

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(self.table(ids))

    policy = afm_fx.Fixed(linear=None, overrides={"table": 0})
    with pytest.raises(PolicyError, match="only plain lookups can become a constant row"):
        afm_fx.compress(Bag(), [torch.randint(0, 20, (30, 3))], policy)


def test_a_measured_plan_drops_a_table_that_hardly_matters() -> None:
    torch.manual_seed(2)
    model = Tower()
    with torch.no_grad():
        model.looked_up()[1].weight.mul_(1e-6).add_(0.3)
    batches = [tower_batch(400) for _ in range(4)]
    plan = afm_fx.compress(model, batches, afm_fx.Budget(parameters=0.5)).plan
    ranks = {site.name: site.rank for site in plan.sites}
    assert ranks["tables.1"] == 0
    assert "one constant row stands for all" in {site.name: site.reason for site in plan.sites}["tables.1"]
    assert "constant row" in plan.table()
