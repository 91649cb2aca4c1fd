"""A refresh encodes what changed and nothing else, and its folder is what applying the plan from nothing gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import afm_fx
from afm_fx.absent_tables import Factory, without_tables
from afm_fx.apply_files import write_tables
from afm_fx.checkpoints import Checkpoint, open_checkpoint
from afm_fx.cli import app
from afm_fx.errors import FileFormatError, PlanError
from afm_fx.streamed_plan import StreamedPlan, TableSource, streamed_plan
from afm_fx.table_folder import INDEX, read_manifest
from tests.streamed_models import LARGE, EveryTable, every_table, every_table_plan, ids_of

ROWS = 7
"""Of a block: six or seven blocks a table."""

FACTORY = "tests.streamed_models:every_table"


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    return afm_fx.capture(*every_table())


@pytest.fixture(scope="module")
def statistics(program: afm_fx.Program) -> afm_fx.Statistics:
    return afm_fx.calibrate(program, [ids_of(400, seed) for seed in range(2)])


@pytest.fixture(scope="module")
def plan(program: afm_fx.Program) -> afm_fx.Plan:
    return every_table_plan(program)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(every_table()[0].state_dict())


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables whose blocks are encoded, in order."""
    names: list[str] = []
    made = TableSource.made

    def note(self: TableSource, features: Tensor) -> Tensor:
        names.append(self.name)
        return made(self, features)

    monkeypatch.setattr(TableSource, "made", note)
    return names


def refreshed(
    state: dict[str, Tensor],
    plan: afm_fx.Plan,
    folder: Path,
    out: str = "out",
    *,
    factory: Factory = every_table,
    statistics: afm_fx.Statistics | None = None,
) -> afm_fx.Refreshed:
    path = folder / "new.safetensors"
    save_file(state, path)
    return afm_fx.refresh(
        factory, plan, path, folder / out, statistics=statistics, rows_per_block=ROWS, large_bytes=LARGE
    )


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: stored.tensor() for name, stored in open_checkpoint(folder).tensors.items()}


def test_only_blocks_that_changed_are_encoded_and_the_rest_is_what_it_was(
    state: dict[str, Tensor], plan: afm_fx.Plan, tmp_path: Path, encoded: list[str]
) -> None:
    first = refreshed(state, plan, tmp_path)
    assert all(table.changed for table in first.files.tables)
    files = dict(json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"])
    encoded.clear()
    again = refreshed(state, plan, tmp_path)
    assert encoded == []
    assert not any(table.changed for table in again.files.tables)

    state["encoded.weight"] = state["encoded.weight"].clone()
    state["encoded.weight"][20] += 1.0  # in the third block
    state["last.weight"] = state["last.weight"] * 2.0
    changed = refreshed(state, plan, tmp_path)
    assert encoded == ["encoded.codes.weight"]
    assert [table.name for table in changed.files.tables if table.changed] == ["encoded.codes.weight"]
    now = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    tables = {table.name for table in changed.files.tables}
    assert {name for name in tables if now[name] != files[name]} == {"encoded.codes.weight"}
    expected = refreshed(state, plan, tmp_path, "from nothing")
    found, wanted = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "from nothing")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    ids = ids_of(20, 5)
    assert torch.equal(changed.files.program.run((ids,)), expected.files.program.run((ids,)))
    assert "3 of 4 tables are as they were" in changed.table()

    (site,) = [site for site in plan.sites if site.name == "encoded"]
    with pytest.raises(PlanError):
        refreshed(state, afm_fx.Plan((site,), {"encoded": plan.factors["first"]}), tmp_path)
    assert json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"] == now


def test_a_plan_with_another_factor_encodes_its_table_again(
    state: dict[str, Tensor], plan: afm_fx.Plan, program: afm_fx.Program, tmp_path: Path, encoded: list[str]
) -> None:
    refreshed(state, plan, tmp_path)
    encoded.clear()
    statistics = afm_fx.calibrate(program, [ids_of(300, 30)])
    policy = afm_fx.Fixed(embedding=2, linear=None, overrides={"encoded": 3, "constant": 0, "kept": None})
    other = afm_fx.make_plan(program, statistics, policy, basis="weight_svd")
    refreshed(state, other, tmp_path)
    assert set(encoded) == {"encoded.codes.weight", "padded.codes.weight"}
    found, wanted = tensors_of(tmp_path / "out"), afm_fx.apply_plan(program, other).graph_module.state_dict()
    torch.testing.assert_close(found["encoded.codes.weight"], wanted["encoded.codes.weight"])


def grown() -> tuple[EveryTable, tuple[Tensor]]:
    model, example = every_table()
    assert isinstance(model, EveryTable)
    added = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    model.encoded = torch.nn.Embedding.from_pretrained(torch.cat([model.encoded.weight, added]), freeze=False)
    return model.eval(), example


def test_a_table_that_grew_encodes_its_new_rows(
    state: dict[str, Tensor], plan: afm_fx.Plan, tmp_path: Path, encoded: list[str]
) -> None:
    refreshed(state, plan, tmp_path)
    encoded.clear()
    model, _ = grown()
    done = refreshed(dict(model.state_dict()), plan, tmp_path, factory=grown)
    assert encoded == ["encoded.codes.weight"]  # 45 rows became 49: the last of seven blocks
    assert tensors_of(tmp_path / "out")["encoded.codes.weight"].shape == (49, 2)
    codes = plan.factors["encoded"].encode_table(model.encoded.weight.detach())
    torch.testing.assert_close(tensors_of(tmp_path / "out")["encoded.codes.weight"], codes)
    assert done.files.program.run((ids_of(5),)).shape == (5,)


@pytest.fixture(scope="module")
def streamed(plan: afm_fx.Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[StreamedPlan, Checkpoint]:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_file(every_table()[0].state_dict(), path)
    opened = open_checkpoint(path)
    return streamed_plan(without_tables(every_table, opened, large_bytes=LARGE), plan), opened


def test_a_file_that_is_gone_or_damaged_is_made_again(
    streamed: tuple[StreamedPlan, Checkpoint], plan: afm_fx.Plan, tmp_path: Path, encoded: list[str]
) -> None:
    write_tables(*streamed, plan, tmp_path / "out")
    wanted = tensors_of(tmp_path / "out")
    entry = read_manifest(tmp_path / "out").tables["encoded.codes.weight"]
    (tmp_path / "out" / entry.file).write_bytes(b"nothing")
    with pytest.raises(FileFormatError):
        tensors_of(tmp_path / "out")
    encoded.clear()
    write_tables(*streamed, plan, tmp_path / "out", reuse=True)
    assert set(encoded) == {"encoded.codes.weight"}
    assert torch.equal(tensors_of(tmp_path / "out")["encoded.codes.weight"], wanted["encoded.codes.weight"])


def test_a_manifest_that_names_files_elsewhere_deletes_nothing(
    streamed: tuple[StreamedPlan, Checkpoint], plan: afm_fx.Plan, tmp_path: Path
) -> None:
    write_tables(*streamed, plan, tmp_path / "out")
    path = tmp_path / "out" / read_manifest(tmp_path / "out").name
    (tmp_path / "precious").touch()
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "superseded": ["../precious"]}))
    with pytest.raises(FileFormatError, match="names files elsewhere"):
        write_tables(*streamed, plan, tmp_path / "out", reuse=True)
    assert (tmp_path / "precious").exists()


def test_drift_says_when_to_calibrate_again(
    state: dict[str, Tensor], plan: afm_fx.Plan, statistics: afm_fx.Statistics, tmp_path: Path
) -> None:
    first = refreshed(state, plan, tmp_path)
    assert not first.calibration_is_due
    factor = plan.factors["encoded"]
    left_out = torch.eye(6, dtype=torch.float64) - factor.decoder @ factor.decoder.mT
    noise = torch.randn(45, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    state["encoded.weight"] = (state["encoded.weight"].double() + 3.0 * noise @ left_out).float()
    drifted = refreshed(state, plan, tmp_path)
    (table,) = [each for each in drifted.files.tables if each.name == "encoded.codes.weight"]
    assert table.kept is not None
    assert table.kept_first is not None
    assert table.kept < table.kept_first - 0.1
    assert drifted.drifted == ("encoded.codes.weight",)
    assert "calibrate again: the codes of encoded.codes.weight" in drifted.table()

    refit = refreshed(state, plan, tmp_path, "refit", statistics=statistics)
    assert refit.refit is not None
    model = EveryTable().eval()
    model.load_state_dict(state)
    program = afm_fx.capture(model, (ids_of(4),))
    expected = afm_fx.refit_plan(plan, program, statistics)
    assert refit.refit.table() == expected.table()
    wanted = afm_fx.apply_plan(program, expected.plan).graph_module.state_dict()
    found = tensors_of(tmp_path / "refit")
    assert all(torch.equal(found[name], wanted[name]) for name in ("encoded.codes.weight", "kept.weight"))


def test_the_command_refreshes_exports_and_tells_a_users_mistake_from_the_rest(
    state: dict[str, Tensor], plan: afm_fx.Plan, statistics: afm_fx.Statistics, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    save_file(state, "new.safetensors")
    plan.save("plan.safetensors")
    statistics.save("statistics.safetensors")
    command = ["refresh", FACTORY, "--plan", "plan.safetensors", "--checkpoint", "new.safetensors", "--out", "tables"]
    done = CliRunner().invoke(app, [*command, "--onnx"])
    assert done.exit_code == 0, done.output
    assert "tables are as they were" in done.output
    assert {"low_rank.onnx", INDEX} <= {path.name for path in (tmp_path / "tables").iterdir()}
    refit = CliRunner().invoke(
        app, [*command, "--statistics", "statistics.safetensors", "--plan-out", "fresh.safetensors"]
    )
    assert refit.exit_code == 0, refit.output
    assert "energy kept then" in refit.output
    assert afm_fx.Plan.load("fresh.safetensors").sites[0].name == plan.sites[0].name
    wrong = CliRunner().invoke(app, [*command[:-3], "none.safetensors", *command[-2:]])
    assert wrong.exit_code == 2
    assert "there is no checkpoint" in wrong.output
