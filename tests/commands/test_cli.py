"""The command line: whole runs on small files, exit codes, one-line errors, nothing written on error."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from typer.testing import CliRunner

import afm_fx
from afm_fx.commands.cli import app
from afm_fx.planning.plan import Plan

MODEL = """
import torch
from torch import nn

class Clicks(nn.Module):
    def __init__(self):
        super().__init__()
        self.item, self.user = nn.Embedding(60, 8), nn.Embedding(40, 8)
        self.first, self.second, self.last = nn.Linear(17, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, features):
        parts = [self.item(features["item"]), self.user(features["user"]), features["price"].unsqueeze(1)]
        hidden = self.first(torch.cat(parts, dim=1)).relu()
        return self.last(self.second(hidden).relu()).sigmoid()

def clicks():
    torch.manual_seed(0)
    return Clicks(), {"item": torch.tensor([0, 1]), "user": torch.tensor([2, 3]), "price": torch.rand(2)}

def big_clicks():
    model, example = clicks()
    model.item = nn.Embedding(6000, 8)
    return model, example

def decides_on_values():
    class Decides(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x[:1]
    return Decides(), torch.rand(4, 3)
"""
RANKS = ["--ranks", "Embedding=2,Linear=4"]
_numbers = itertools.count()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A working directory with a model, its data and a checkpoint; gives the module's name."""
    name = f"shop_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "rows.npz",
        item=random.integers(0, 60, 500),
        user=random.integers(0, 40, 500),
        price=random.random(500),
        label=random.integers(0, 2, 500),
    )
    yield name
    sys.modules.pop(name, None)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def listing(path):
    return sorted(file.name for file in path.iterdir())


def test_compress_writes_both_models_plan_and_report(shop, tmp_path):
    pytest.importorskip("onnxruntime")
    result = run("compress", f"{shop}:clicks", "--data", "rows.npz", "--out", "out", *RANKS)
    assert result.exit_code == 0, result.output
    assert listing(tmp_path / "out") == [
        "config.json", "dense.onnx", "low_rank.onnx", "plan.safetensors", "report.json",
    ]  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["parameters_after"] < report["parameters_before"]
    assert {site["name"]: site["rank"] for site in report["sites"]}["item"] == 2
    assert [each["file"] for each in report["exports"]] == ["dense.onnx", "low_rank.onnx"]
    assert Plan.load(tmp_path / "out" / "plan.safetensors").parameters_after == report["parameters_after"]
    assert f"{report['parameters_after']:,}" in result.stdout


def test_compress_keeps_a_limit_on_labelled_rows(shop, tmp_path):
    pytest.importorskip("onnxruntime")
    result = run(
        "compress", f"{shop}:clicks", "--data", "rows.npz", "--out", "out", "--auc-drop", "0.2",
        "--evaluation", "rows.npz", "--labels", "label", "--columns", "item,user,price",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    plan = Plan.load(tmp_path / "out" / "plan.safetensors")
    assert plan.policy == {"policy": "Tolerance", "auc_drop": 0.2, "confidence": 0.95}
    (evidence,) = plan.evidence
    assert evidence.rows == 500
    assert evidence.bound is not None
    assert evidence.bound <= 0.2
    assert plan.parameters_after < 0.9 * plan.parameters_before


def test_compress_recovers_on_the_originals_logits_and_on_labels_before_it_packs(shop, tmp_path):
    pytest.importorskip("onnxruntime")
    arguments = ["compress", f"{shop}:clicks", "--data", "rows.npz", *RANKS, "--batch-size", "50"]
    result = run(*arguments, "--out", "out", "--recover-epochs", "2", "--labels", "label")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    recovery = report["recovery"]
    assert [epoch["number"] for epoch in recovery["epochs"]] == [0, 1, 2]
    assert recovery["epochs"][2]["log_loss"] < recovery["epochs"][0]["log_loss"]
    assert recovery["held_out_rows"] == 50
    assert report["packing"] is not None
    assert "parameters trained" in result.stdout
    alone = run(*arguments, "--out", "other", "--labels", "label")
    assert (alone.exit_code, "say how long with --recover-epochs" in " ".join(alone.stderr.split())) == (2, True)
    missing = run(*arguments, "--out", "other", "--recover-epochs", "2", "--labels", "clicked")
    assert (missing.exit_code, "has no column 'clicked'" in " ".join(missing.stderr.split())) == (2, True)
    assert not (tmp_path / "other").exists()


def test_compress_draws_a_report_that_names_its_plan_and_measures_on_labels(shop, tmp_path, monkeypatch):
    for package in ("onnxruntime", "pygraphviz", "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.setattr("afm_fx.commands.compress_files.TIMED_SECONDS", 0.01)
    monkeypatch.setattr("afm_fx.commands.compress_files.TIMED_BATCH_SIZES", (1, 8))
    command = ["compress", f"{shop}:clicks", "--data", "rows.npz", "--out", "out", *RANKS, "--report", "report.html"]
    result = run(*command, "--evaluation", "rows.npz", "--labels", "label")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<h1>{shop}:clicks</h1>" in page
    assert "500 labelled rows" in page
    assert Plan.load(tmp_path / "out" / "plan.safetensors").digest in page
    assert "low-rank</td>" in page
    again = run(*command, "--force", "--evaluation", "rows.npz")
    assert (again.exit_code, "--labels names" in " ".join(again.stderr.split())) == (2, True)
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    before = (tmp_path / "out" / "low_rank.onnx").stat().st_mtime_ns
    missing = run(*command, "--force")
    assert (missing.exit_code, "pip install 'afm-fx[report]'" in " ".join(missing.stderr.split())) == (2, True)
    assert (tmp_path / "out" / "low_rank.onnx").stat().st_mtime_ns == before


def test_compress_reduces_tables_and_reports_their_error(shop, tmp_path):
    pytest.importorskip("onnxruntime")
    wide = ["--ranks", "Embedding=7,Linear=4", "--no-pack"]
    assert run("compress", f"{shop}:big_clicks", "--data", "rows.npz", "--out", "plain", *wide).exit_code == 0
    result = run("compress", f"{shop}:big_clicks", "--data", "rows.npz", "--out", "out", *wide, "--tables", "int8")
    assert result.exit_code == 0, result.output
    precision = json.loads((tmp_path / "out" / "report.json").read_text())["precision"]
    assert [stored for _, stored in precision["reduced"]] == ["int8"]
    assert precision["error"]["rows"] == 500
    assert 0 < precision["error"]["rmse"] < 0.1
    assert "logit error over 500 rows" in result.stdout
    kinds = {each.data_type for each in onnx.load(tmp_path / "out" / "low_rank.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    sizes = [(tmp_path / folder / "low_rank.onnx").stat().st_size for folder in ("out", "plain")]
    assert sizes[0] < 0.5 * sizes[1]
    assert json.loads((tmp_path / "plain" / "report.json").read_text())["precision"] is None


def test_compress_compiles_a_package_that_bench_times(shop, tmp_path):
    pytest.importorskip("onnxruntime")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    result = run("compress", f"{shop}:clicks", "--data", "rows.npz", "--out", "out", *RANKS, "--aoti")
    assert result.exit_code == 0, result.output
    assert "low_rank.pt2" in listing(tmp_path / "out")
    assert "low_rank.pt2: compiled in" in result.stdout
    for first, second in (("low_rank.pt2", "low_rank.onnx"), ("low_rank.onnx", "low_rank.pt2")):
        result = run("bench", f"a=out/{first}", f"b=out/{second}", "--batch-sizes", "1,8", "--seconds", "0.01")
        assert result.exit_code == 0, result.output
        assert "AOTInductor" in result.stdout


def test_compress_loads_the_checkpoint(shop, tmp_path):
    pytest.importorskip("onnxruntime")
    state = {
        "item.weight": torch.full((60, 8), 0.5), "user.weight": torch.full((40, 8), 0.25),
        "first.weight": torch.full((32, 17), 0.1), "first.bias": torch.zeros(32),
        "second.weight": torch.full((32, 32), 0.1), "second.bias": torch.zeros(32),
        "last.weight": torch.full((1, 32), 0.1), "last.bias": torch.zeros(1),
    }  # fmt: skip
    torch.save(state, tmp_path / "weights.pt")
    result = run(
        "compress",
        f"{shop}:clicks",
        "--checkpoint",
        "weights.pt",
        "--data",
        "rows.npz",
        "--out",
        "out",
        "--ranks",
        "full",
    )
    assert result.exit_code == 0, result.output
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load("out/dense.onnx").graph.initializer}
    np.testing.assert_array_equal(weights["item.weight"], state["item.weight"].numpy())


def test_existing_outputs_are_refused_before_the_model_is_even_looked_for(shop, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("mine")
    result = run("compress", "no.such:model", "--data", "rows.npz", "--out", "out", *RANKS)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert listing(tmp_path / "out") == ["report.json"]
    assert (tmp_path / "out" / "report.json").read_text() == "mine"


@pytest.mark.parametrize("command", ["compress", "sweep", "apply", "explain", "bench"])
def test_processes_of_torchrun_do_not_each_do_the_whole_work(command, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused = run(command, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert f"'{command}' would do the whole work in each of the 4 processes" in " ".join(refused.stderr.split())
    assert "without torchrun" in refused.stderr
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "torchrun" not in run(command, "--out", tmp_path / "out").stderr


def test_force_replaces_existing_outputs(shop, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("old")
    result = run("compress", f"{shop}:clicks", "--data", "rows.npz", "--out", "out", "--force", *RANKS)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "report.json").read_text())["parameters_before"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "none.npz", *RANKS], "there is no data file 'none.npz'"),
        (["--data", "rows.npz"], "choose a policy"),
        (["--data", "rows.npz", "--budget", "0.3", "--energy", "0.9"], "choose one policy, not --budget and --energy"),
        (["--data", "rows.npz", "--budget", "0.0001"], "cannot be reached"),
        (["--data", "rows.npz", "--auc-drop", "0.01"], "a limit on auc_drop needs --evaluation rows"),
        (["--data", "rows.npz", "--logit-rmse", "-1"], "logit_rmse above 0"),
        (["--data", "rows.npz", "--ranks", "first"], "a rank is given as SITE=RANK"),
        (["--data", "rows.npz", "--ranks", "first=x"], "a whole number or none; got 'first=x'"),
        (["--data", "rows.npz", "--ranks", "frist=3"], "frist"),
        (["--data", "rows.npz", "--ranks", "item=99"], "item"),
        (["--data", "rows.npz", "--checkpoint", "none.pt", *RANKS], "there is no checkpoint 'none.pt'"),
        (["--data", "rows.npz", "--columns", "item,prize", *RANKS], "no column 'prize'"),
    ],
)
def test_a_wrong_input_exits_with_2_in_one_line_and_writes_nothing(shop, tmp_path, arguments, says):
    before = listing(tmp_path)
    result = run("compress", f"{shop}:clicks", "--out", "out", *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "Traceback" not in result.output
    assert set(listing(tmp_path)) - {"__pycache__"} == set(before)


def test_ids_outside_the_table_exit_with_2_and_write_nothing(shop, tmp_path):
    np.savez(tmp_path / "bad.npz", item=np.full(20, 60), user=np.zeros(20, int), price=np.zeros(20))
    result = run("compress", f"{shop}:clicks", "--data", "bad.npz", "--out", "out", *RANKS)
    assert result.exit_code == 2, result.output
    assert "60" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_failed_export_exits_with_1_and_writes_nothing(shop, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise afm_fx.errors.ExportError("the file disagrees")

    monkeypatch.setattr("afm_fx.commands.compress_files.export_onnx", fail)
    result = run("compress", f"{shop}:clicks", "--data", "rows.npz", "--out", "out", *RANKS)
    assert result.exit_code == 1
    assert "error: the file disagrees" in result.stderr
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(shop):
    result = run("--debug", "explain", f"{shop}:nothing")
    assert isinstance(result.exception, afm_fx.errors.ModelError)


def test_explain_names_every_site_and_its_verdict(shop):
    result = run("explain", f"{shop}:clicks")
    assert result.exit_code == 0, result.output
    for word in ("item", "user", "first", "second", "absorbed", "restored"):
        assert word in result.stdout


def test_explain_writes_json_and_page(shop, tmp_path):
    pytest.importorskip("pygraphviz")
    result = run("explain", f"{shop}:clicks", "--json", "explained.json", "--html", "explained.html")
    assert result.exit_code == 0, result.output
    explanation = afm_fx.report.Explanation.from_json((tmp_path / "explained.json").read_text())
    assert explanation.table() in result.stdout
    assert f"<h1>{shop}:clicks</h1>" in (tmp_path / "explained.html").read_text()
    assert "Written: explained.json, explained.html" in result.stdout


def test_explain_loads_the_checkpoint(shop, tmp_path):
    torch.save({"item.weight": torch.zeros(60, 8)}, tmp_path / "weights.pt")
    result = run("explain", f"{shop}:clicks", "--checkpoint", "weights.pt")
    assert result.exit_code == 2
    assert "is of another model" in result.stderr


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_explain_refuses_an_existing_file_before_the_model_is_even_looked_for(shop, tmp_path, option):
    (tmp_path / "mine").write_text("mine")
    result = run("explain", "no.such:model", option, "mine")
    assert result.exit_code == 2
    assert "'mine' exists already" in result.stderr
    assert (tmp_path / "mine").read_text() == "mine"


def test_explain_replaces_an_existing_file_by_force(shop, tmp_path):
    (tmp_path / "mine").write_text("mine")
    result = run("explain", f"{shop}:clicks", "--json", "mine", "--force")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "mine").read_text())["version"] == 2


def test_explain_names_the_extra_that_draws(shop, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    result = run("explain", f"{shop}:clicks", "--html", "explained.html")
    assert result.exit_code == 2
    assert "pip install 'afm-fx[report]'" in result.stderr
    assert not (tmp_path / "explained.html").exists()


def test_explain_tells_why_a_model_cannot_be_captured(shop):
    result = run("explain", f"{shop}:decides_on_values")
    assert result.exit_code == 2
    assert "Decides" in result.stderr
    assert "What to try" in result.stderr


@pytest.mark.parametrize("inputs", [[], ["--inputs", "rows.npz"]])
def test_bench_times_every_file_at_every_batch_size(shop, tmp_path, inputs):
    pytest.importorskip("onnxruntime")
    assert run("compress", f"{shop}:clicks", "--data", "rows.npz", "--out", "out", *RANKS).exit_code == 0
    result = run(
        "bench", "dense=out/dense.onnx", "low=out/low_rank.onnx@cpu", "--batch-sizes", "1,8", "--seconds", "0.01",
        "--json", "bench.json", *inputs,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    timings = json.loads((tmp_path / "bench.json").read_text())["timings"]
    assert {(each["contender"], each["batch_size"]) for each in timings} == {
        ("dense", 1), ("dense", 8), ("low", 1), ("low", 8)
    }  # fmt: skip
    assert "low" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dense.onnx"], "a file is given as NAME=FILE"),
        (["a=none.onnx"], "none.onnx"),
        (["a=rows.npz"], "not an ONNX file"),
        (["a=x.onnx", "a=y.onnx"], "a name is given to two files"),
        (["a=x.onnx", "--batch-sizes", "1;2"], "batch sizes are whole numbers"),
    ],
)
def test_bench_tells_what_is_wrong(shop, arguments, says):
    result = run("bench", *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr


@pytest.mark.parametrize("command", ["explain", "compress", "bench", "load"])
def test_help_documents_every_option(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in app_options(command):
        assert option in result.stdout


def app_options(command):
    group: Any = typer.main.get_command(app)
    parameters = group.commands[command].params
    named = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    assert named
    assert all(parameter.help for parameter in parameters)
    return [option for parameter in named for option in parameter.opts if option.startswith("--")]


def test_version_and_no_arguments():
    assert run("--version").stdout.strip() == f"afm-fx {afm_fx.__version__}"
    assert "compress" in run().output


def test_an_unknown_option_exits_with_2():
    assert run("compress", "--no-such-option").exit_code == 2
