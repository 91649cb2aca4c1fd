"""Exported files keep the rules of files for serving; files that break one are told which, where and what to do."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

import afm_fx
from afm_fx.commands.cli import app
from afm_fx.errors import ExportError, FileFormatError
from afm_fx.program.recipe import RECIPE_KEY, file_recipe
from afm_fx.runtime.onnx_check import CheckReport, Severity, refuse_findings
from tests.graphs import Tower, tower_batch
from tests.passes.serving.test_pack_tables import Wide, wide_inputs

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]


def compressed_tower() -> afm_fx.Compressed:
    torch.manual_seed(2)
    return afm_fx.compress(Tower(64).eval(), [tower_batch(256)], afm_fx.Fixed(2, 4), basis="afm")


@pytest.fixture(scope="module")
def compressed() -> afm_fx.Compressed:
    return compressed_tower()


@pytest.fixture(scope="module")
def file(compressed: afm_fx.Compressed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return afm_fx.export_onnx(compressed.program, tmp_path_factory.mktemp("file") / "low_rank.onnx", check=False).path


def changed(file: Path, target: Path, change: Callable[[onnx.ModelProto], Any]) -> Path:
    model = onnx.load(file)
    change(model)
    onnx.save(model, target)
    return target


def found(report: CheckReport) -> list[tuple[str, str]]:
    return [(finding.rule, finding.severity.value) for finding in report.findings]


def test_a_compressed_file_keeps_every_rule_and_says_how_it_came_about(compressed, file):
    report = afm_fx.check_onnx(file)
    assert report.passed
    assert report.findings == ()
    assert report.producer == f"afm_fx {afm_fx.__version__}"
    assert report.recipe is not None
    assert report.recipe.recipe.plan == compressed.plan.digest
    assert [str(step) for step in report.recipe.recipe.steps] == ["apply plan", "pack (out_of_range unchecked)"]
    assert report.recipe.batch_size is None
    assert (report.recipe.batched_inputs, report.recipe.batched_outputs) == (("ids", "dense"), ("output",))
    assert report.bytes == file.stat().st_size
    assert report.parameters >= compressed.program.parameter_count()
    assert [each.line() for each in report.inputs] == ["ids: int64 [batch, 3]", "dense: float32 [batch, 2]"]
    text = report.table()
    assert compressed.plan.digest in text
    assert "every rule is kept" in text


def test_what_every_export_writes_keeps_every_rule(compressed, file, tmp_path):
    program = compressed.program
    outside = afm_fx.export_onnx(program, tmp_path / "outside.onnx", check=False, external_data_bytes=0)
    buckets = afm_fx.export_onnx_buckets(program, tmp_path / "model.onnx", (1, 4), check=False)
    for path in (outside.path, *(each.path for each in buckets)):
        report = afm_fx.check_onnx(path)
        assert report.findings == (), report.table()
        assert report.recipe is not None
        assert report.recipe.recipe.plan == compressed.plan.digest
    assert outside.data_path is not None
    report, data_bytes = afm_fx.check_onnx(outside.path), outside.data_path.stat().st_size
    assert report.weights == ((outside.data_path.name, data_bytes),)
    assert report.bytes == outside.path.stat().st_size + data_bytes
    bucket = afm_fx.check_onnx(buckets[1].path)
    assert bucket.recipe is not None
    assert bucket.recipe.batch_size == 4
    assert bucket.weights == (("model.weights.data", (tmp_path / "model.weights.data").stat().st_size),)


def test_a_typed_file_tells_its_ids(tmp_path):
    program = afm_fx.capture(Wide().eval(), wide_inputs(3)[0].float())
    reduced = afm_fx.reduce_precision(afm_fx.pack(program, inputs="typed").program, "float16", smallest_bytes=0).program
    report = afm_fx.check_onnx(afm_fx.export_onnx(reduced, tmp_path / "typed.onnx", check=False).path)
    assert report.findings == ()
    assert len(report.ids) == 6
    assert report.ids[0] == ("sparse", 0, "tables.0", 0, 6)
    assert report.recipe is not None
    assert report.recipe.recipe.plan is None
    assert [str(step) for step in report.recipe.recipe.steps] == [
        "pack (out_of_range unchecked)", "typed inputs", "tables (format float16, reduced 1)",
    ]  # fmt: skip


def _rename(model: onnx.ModelProto, domain: str, kind: str | None = None) -> None:
    model.graph.node[0].domain = domain
    if kind is not None:
        model.graph.node[0].op_type = kind


def _add_loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [helper.make_tensor_value_info(*each, []) for each in (("i", TensorProto.INT64), ("go", TensorProto.BOOL))],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    count, go = helper.make_tensor("n", TensorProto.INT64, [], [2]), helper.make_tensor("c", TensorProto.BOOL, [], [1])
    model.graph.initializer.extend([count, go])
    model.graph.node.append(helper.make_node("Loop", ["n", "c"], [], name="the_loop", body=body))


def _note(key: str, value: str | None) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        kept = [entry for entry in model.metadata_props if entry.key != key]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        if value is not None:
            model.metadata_props.add(key=key, value=value)

    return change


def _longer(model: onnx.ModelProto) -> None:
    max(model.graph.initializer, key=lambda each: len(each.raw_data)).dims[0] += 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: _rename(m, "com.example"), ("domain", "error", "com.example::", "outside the standard domain")),
        (_add_loop, ("control flow", "error", "operator 'the_loop'", "Loop decides at run time")),
        (lambda m: m.opset_import[0].Clear(), ("opset", "error", "opset_import", "version 0 is none that onnx")),
        (lambda m: setattr(m.opset_import[0], "version", 999), ("opset", "error", "opset_import", "version 999 is")),
        (lambda m: m.ClearField("opset_import"), ("opset", "error", "opset_import", "not stated")),
        (_longer, ("storage", "error", "tensor '", "its shape and type ask for")),
        (lambda m: m.ClearField("producer_name"), ("metadata", "warning", "producer", "does not say what wrote it")),
        (_note("afm_fx.recipe", None), ("metadata", "warning", "recipe", "does not say how it came about")),
        (_note("afm_fx.recipe", "{"), ("metadata", "error", "recipe", "is damaged")),
        (_note("afm_fx.recipe", '{"version": 9}'), ("metadata", "error", "recipe", "version 9")),
        (_note("afm_fx.plan", "sha256:0"), ("metadata", "error", "recipe", "contradict")),
        (_note("afm_fx.inputs", "[]"), ("metadata", "error", "typed inputs", "damaged")),
        (lambda m: setattr(m.graph.node[-1], "op_type", "Nonsense"), ("checker", "error", "file", "Nonsense")),
    ],
)  # fmt: skip
def test_a_broken_rule_is_told_with_where_and_what_to_do(file, tmp_path, change, expected):
    rule, severity, where, says = expected
    report = afm_fx.check_onnx(changed(file, tmp_path / "changed.onnx", change))
    matching = [each for each in report.findings if (each.rule, each.severity) == (rule, severity)]
    assert matching, report.table()
    assert where in matching[0].where
    assert says in matching[0].message
    assert matching[0].remedy
    assert matching[0].line() in report.table()
    assert report.passed == all(each.severity is not Severity.ERROR for each in report.findings)


@pytest.mark.parametrize("change", [lambda m: _rename(m, "com.example"), _note("afm_fx.recipe", None)])
def test_an_export_that_broke_a_rule_or_lacked_its_recipe_would_be_refused(file, tmp_path, change):
    refuse_findings(file, control_flow=True)
    with pytest.raises(ExportError, match="keeps not all rules"):
        refuse_findings(changed(file, tmp_path / "changed.onnx", change), control_flow=True)


def test_a_file_decides_at_run_time_only_where_its_program_does(file, tmp_path):
    looped = changed(file, tmp_path / "looped.onnx", _add_loop)
    refuse_findings(looped, control_flow=True)
    with pytest.raises(ExportError, match="Loop decides at run time"):
        refuse_findings(looped, control_flow=False)


def test_a_file_that_is_no_onnx_file_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    for name in ("text.onnx", "none.onnx"):
        with pytest.raises(FileFormatError, match=name):
            afm_fx.check_onnx(tmp_path / name)


def test_the_command_prints_writes_json_and_exits_by_what_it_found(file, tmp_path):
    def run(*arguments: str | Path) -> Any:
        return CliRunner().invoke(app, ["check", *map(str, arguments)])

    out = tmp_path / "check.json"
    kept = run(file, "--json", out)
    assert kept.exit_code == 0, kept.output
    assert "every rule is kept" in kept.output
    (report,) = json.loads(out.read_text())
    assert report["passed"] is True
    assert report["recipe"]["recipe"]["plan"].startswith("sha256:")
    broken = changed(file, tmp_path / "broken.onnx", lambda model: _rename(model, "com.example"))
    assert run(file, broken).exit_code == 1
    (tmp_path / "text.onnx").write_text("not a model")
    assert run(tmp_path / "text.onnx").exit_code == 2
    assert run(file, "--json", out).exit_code == 2


def test_a_recipe_survives_its_way_through_a_file(compressed, file):
    notes = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    recipe = file_recipe(notes)
    assert recipe is not None
    assert recipe.to_json() == notes[RECIPE_KEY]
    assert recipe.recipe == compressed.program.recipe


EXPORT = """
import sys
import torch
import afm_fx
from tests.runtime.test_onnx_check import compressed_tower
torch.set_num_threads(1)
afm_fx.export_onnx(compressed_tower().program, sys.argv[1], check=False)
"""


def test_another_process_writes_the_same_bytes_the_plans_digest_included(file, tmp_path):
    path = tmp_path / "again.onnx"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # sets of strings are in another order
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", EXPORT, str(path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(file.read_bytes()).digest()
