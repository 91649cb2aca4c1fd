"""``compress(keep_rows=...)``: rare rows, or named ones, keep their features, and the plan counts what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import afm_fx
from afm_fx.apply_files import apply_to_files
from afm_fx.errors import PolicyError
from afm_fx.explanation import KEPT, explain_plan

ROWS, RARE = 400, 20
"""Rows of each table; the last :data:`RARE` are looked up by nobody."""


class Clicks(nn.Module):
    """Two fields, each with a weight of its own in a linear term, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, 8) for _ in range(2))
        self.weights = nn.ModuleList(nn.Embedding(ROWS, 1) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 1))

    def forward(self, ids: Tensor) -> Tensor:
        deep = self.mlp(torch.cat([table(ids[:, field]) for field, table in enumerate(self.tables)], dim=1))
        return deep + sum(weight(ids[:, field]) for field, weight in enumerate(self.weights))


def frequent(rows: int) -> Tensor:
    return torch.randint(0, ROWS - RARE, (rows, 2))


def rare(rows: int) -> Tensor:
    return torch.randint(ROWS - RARE, ROWS, (rows, 2))


@pytest.fixture(scope="module")
def compressed() -> afm_fx.Compressed:
    torch.manual_seed(3)
    policy = afm_fx.Budget(parameters=0.4)
    return afm_fx.compress(Clicks().double(), [frequent(4000) for _ in range(3)], policy, keep_rows=1)


def test_rows_that_calibration_never_saw_are_exact_and_others_are_not(compressed: afm_fx.Compressed) -> None:
    original = compressed.original
    policy = afm_fx.Fixed(embedding=2, linear=None)
    program = afm_fx.apply_plan(original, afm_fx.make_plan(original, compressed.statistics, policy, keep_rows=1))
    seen, unseen = frequent(300), rare(300)
    torch.testing.assert_close(program.run(unseen), original.run(unseen), rtol=1e-12, atol=1e-12)
    assert (program.run(seen) - original.run(seen)).abs().max() > 1e-3


def test_kept_rows_count_in_the_budget(compressed: afm_fx.Compressed) -> None:
    original, plan = compressed.original, compressed.plan
    factored = [site for site in plan.sites if site.rank is not None and site.name.startswith("tables")]
    assert len(factored) == 2
    assert {name: ids.tolist() for name, ids in plan.kept_rows.items()} == {
        site.name: list(range(ROWS - RARE, ROWS)) for site in factored
    }
    unpacked = afm_fx.apply_plan(original, plan)
    assert plan.parameters_after == unpacked.parameter_count() <= 0.4 * original.parameter_count()
    assert "20 rows keep their features" in plan.table()


def test_the_plan_is_saved_with_its_rows_and_explained(compressed: afm_fx.Compressed, tmp_path: Path) -> None:
    plan = compressed.plan
    plan.save(tmp_path / "plan.safetensors")
    again = afm_fx.Plan.load(tmp_path / "plan.safetensors")
    assert again.digest == plan.digest
    assert again.digest != afm_fx.Plan(plan.sites, plan.factors, units=plan.units).digest
    ids = rare(50)
    torch.testing.assert_close(
        afm_fx.apply_plan(compressed.original, again).run(ids), afm_fx.apply_plan(compressed.original, plan).run(ids)
    )
    reasons = {site.name: site.refusal for site in explain_plan(compressed.original, plan).sites}
    assert [name for name, reason in reasons.items() if reason == KEPT] == [f"{name}.kept" for name in plan.kept_rows]


def test_the_exported_file_keeps_the_rows(compressed: afm_fx.Compressed, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    program = compressed.program.to(torch.float32)
    afm_fx.export_onnx(program, tmp_path / "model.onnx")
    ids = rare(40)
    found = afm_fx.Session(tmp_path / "model.onnx").run(ids)
    torch.testing.assert_close(found, program.run(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_plan_that_keeps_rows_is_applied_to_a_checkpoint_on_disk_too(
    compressed: afm_fx.Compressed, tmp_path: Path, rank: int
) -> None:
    def factory() -> tuple[nn.Module, tuple[Tensor]]:
        torch.manual_seed(3)
        return Clicks().eval(), (frequent(4),)

    program = afm_fx.capture(*factory())
    policy = afm_fx.Fixed(embedding=2, linear=None, overrides={"tables.1": rank})
    plan = afm_fx.make_plan(program, compressed.statistics, policy, keep_rows=1)
    assert sorted(plan.kept_rows) == ["tables.0", "tables.1"]
    save_file(factory()[0].state_dict(), tmp_path / "model.safetensors")
    applied = apply_to_files(factory, tmp_path / "model.safetensors", plan, tmp_path / "out", large_bytes=4_000)
    assert "tables.0.codes.weight" in {table.name for table in applied.tables}
    ids = rare(30)
    torch.testing.assert_close(applied.program.run(ids), program.run(ids), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(applied.program.run(ids), afm_fx.apply_plan(program, plan).run(ids))


def test_named_rows_are_kept_under_a_joint_code_too(compressed: afm_fx.Compressed) -> None:
    original, statistics = compressed.original, compressed.statistics
    plan = afm_fx.make_plan(
        original, statistics, afm_fx.Fixed(embedding=2, linear=None), keep_rows={"tables.0": torch.tensor([3, 1])}
    )
    assert {name: ids.tolist() for name, ids in plan.kept_rows.items()} == {"tables.0": [1, 3]}
    held_out = [frequent(500)]
    joint = afm_fx.make_plan(
        original,
        statistics,
        afm_fx.Budget(parameters=0.3),
        held_out=held_out,
        keep_rows={"weights.1": torch.tensor([9])},
    )
    (name,) = joint.kept_rows
    assert [site.tables for site in joint.sites if site.name == name] == [("tables.1", "weights.1")]


def test_a_table_of_which_too_much_would_be_kept_is_left_alone(compressed: afm_fx.Compressed) -> None:
    policy = afm_fx.Fixed(embedding=2, linear=None)
    many = {"tables.0": torch.arange(ROWS - 40)}
    plan = afm_fx.make_plan(compressed.original, compressed.statistics, policy, keep_rows=many)
    (site,) = [site for site in plan.sites if site.name == "tables.0"]
    assert site.rank is None
    assert "no code saves anything" in site.reason
    assert plan.parameters_after == afm_fx.apply_plan(compressed.original, plan).parameter_count()


@pytest.mark.parametrize(
    ("keep_rows", "message"),
    [
        (-1, "0 or more"),
        ({"nothing": torch.tensor([1])}, "'nothing'"),
        ({"mlp.0": torch.tensor([1])}, "no table that can be factored"),
        ({"tables.0": torch.tensor([ROWS])}, "ids from 0 to 399"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    compressed: afm_fx.Compressed, keep_rows: int | dict[str, Tensor], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        afm_fx.make_plan(compressed.original, compressed.statistics, afm_fx.Fixed(), keep_rows=keep_rows)
