"""A recipe's command line asks for the job that was done."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import afm_fx
from afm_fx.cli import app
from afm_fx.compress_job import CompressJob
from afm_fx.compress_recipe import recipe_of
from afm_fx.tolerance import LabelledTolerance

JOBS = [
    CompressJob("shop:ctr", Path("rows.npz"), Path("out"), afm_fx.Budget(0.2), report=Path("r.html")),
    CompressJob(
        "shop:ctr", Path("my rows.npz"), Path("o'ut"), afm_fx.Energy(0.9), Path("w.pt"), basis="afm", pack=False
    ),
    CompressJob(
        "shop:ctr", Path("rows.npz"), Path("out"), afm_fx.Fixed(None, 64, {"mlp.2": 8, "mlp.4": None}),
        columns=["ids", "dense"], batch_size=512, max_rows=9_000, inputs="typed", buckets=(1, 16), tables="int8",
        aoti=True, recover_epochs=3, labels=("click", "buy"),
    ),
    CompressJob(
        "shop:ctr", Path("rows.npz"), Path("out"), afm_fx.FullRank(), labels=("click",), report=Path("r.html"),
        report_batch_sizes=(1, 8), evaluation=Path("eval.npz"),
    ),
    CompressJob("shop:ctr", Path("rows.npz"), Path("out"), afm_fx.Budget(bytes=0.3)),
    CompressJob(
        "shop:ctr", Path("rows.npz"), Path("out"), LabelledTolerance("auc_drop", 0.001, 0.9), labels=("click",),
        evaluation=Path("eval.npz"),
    ),
    CompressJob("shop:ctr", Path("rows.npz"), Path("out"), afm_fx.Tolerance(logit_rmse=0.05)),
    CompressJob("shop:ctr", Path("rows.npz"), Path("out"), afm_fx.Latency(250.0, 64)),
]  # fmt: skip


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job.policy).__name__)
def test_the_command_asks_for_the_job(job: CompressJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (job.data, job.checkpoint, job.evaluation):
        if path is not None:
            path.write_bytes(b"rows")
    plan = tmp_path / "staged" / "plan.safetensors"
    plan.parent.mkdir()
    plan.write_bytes(b"a plan")
    recipe = recipe_of(job, 500, plan)
    asked: list[CompressJob] = []

    class AskedError(Exception):
        pass

    def ask(given: CompressJob) -> None:
        asked.append(given)
        raise AskedError

    monkeypatch.setattr("afm_fx.compress_command.run_compress_job", ask)
    result = CliRunner().invoke(app, [*shlex.split(recipe.command)[1:], "--debug"])
    assert isinstance(result.exception, AskedError), result.output
    assert asked == [job]
    files = {each.role: each for each in recipe.files}
    assert files["calibration rows"].detail == "500 rows, 4 bytes"
    assert files["plan"].name == str(job.out / "plan.safetensors")
    assert files["plan"].sha256 == hashlib.sha256(b"a plan").hexdigest()
