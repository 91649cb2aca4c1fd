"""The demo, at a size that a test can afford."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from afm_fx.errors import OutputExistsError, UserError
from examples.demo.model import Training, build_deepfm, model_inputs, score, train
from examples.demo.run import DEMO_OUTPUTS, DemoSettings, run_demo
from examples.generated_clicks import ClickGenerator

GENERATOR = ClickGenerator(sparse_fields=8, dense_fields=4, largest_vocabulary=100)
TRAINING = Training(embedding_width=8, hidden_units=(32, 32, 32), epochs=2, batch_size=256, learning_rate=1e-2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Settings, result and spoken lines of one small demo."""
    pytest.importorskip("deepctr_torch")
    pytest.importorskip("onnxruntime")
    lines: list[str] = []
    settings = DemoSettings(
        out=tmp_path_factory.mktemp("demo") / "out", rows=20_000, test_rows=4_000, calibration_rows=4_000,
        generator=GENERATOR, training=TRAINING, batch_sizes=(1, 16), threads=1, seconds=0.01,
    )  # fmt: skip
    return settings, run_demo(settings, lines.append), lines


def test_the_demo_writes_both_files_plan_report_and_measurements(finished):
    settings, result, lines = finished
    names = {file.name for file in settings.out.iterdir()}
    assert names == {"dense.onnx", "low_rank.onnx", "plan.safetensors", "report.json", "demo.json"}
    assert names <= set(DEMO_OUTPUTS)
    stored = json.loads((settings.out / "demo.json").read_text())
    assert stored["low_rank"]["quality"]["auc"] == result.low_rank.quality.auc
    assert len(lines) == 5


def test_the_low_rank_model_is_smaller_and_agrees_with_torch(finished):
    _, result, _ = finished
    assert result.low_rank.parameters < result.dense.parameters
    assert result.low_rank.file_bytes < result.dense.file_bytes
    assert max(result.dense.max_abs_difference, result.low_rank.max_abs_difference) < 1e-5


def test_both_models_predict_clicks_nearly_as_well_as_the_truth(finished):
    _, result, _ = finished
    assert 0.7 < result.dense.quality.auc < result.best_possible.auc + 0.01
    assert result.low_rank.quality.auc > result.dense.quality.auc - 0.02
    assert result.dense.quality.log_loss > result.best_possible.log_loss


def test_sizes_in_the_table_are_those_of_the_files(finished):
    settings, result, _ = finished
    table = result.table()
    for name, version in (("dense", result.dense), ("low_rank", result.low_rank)):
        path = settings.out / f"{name}.onnx"
        assert path.stat().st_size == version.file_bytes
        assert f"{version.parameters:,}" in table
        weights = sum(np.prod(each.dims) for each in onnx.load(path).graph.initializer)
        assert weights >= 0.99 * version.parameters  # the exporter folds decoders' constants that only meet each other
    for words in ("AUC", "LogLoss", "p50 at batch 1 ", " at batch 16 "):
        assert words in table


def test_every_line_of_the_demo_fits_a_terminal_of_120_columns(finished):
    _, result, lines = finished
    for line in [*lines, *result.table().splitlines(), *result.footnotes().splitlines()[:-1]]:  # the machine's name
        assert len(line) <= 120, line


def test_existing_outputs_are_refused_before_any_work(tmp_path):
    (tmp_path / "dense.onnx").write_text("mine")
    with pytest.raises(OutputExistsError):
        run_demo(DemoSettings(out=tmp_path), lambda line: pytest.fail(f"did work: {line}"))


def test_the_model_is_imported_without_a_word_and_without_the_network():
    pytest.importorskip("deepctr_torch")
    script = """
import socket
from examples.demo.model import Training, build_deepfm

def refuse(*arguments, **options):
    print("the network was asked for", arguments)
    raise OSError("no network")

socket.getaddrinfo = socket.create_connection = refuse
build_deepfm((5, 6), 1, Training())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", script]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)  # noqa: S603 - our own script
    assert finished.stdout + finished.stderr == ""


def test_training_is_the_same_for_the_same_seed_and_lowers_the_loss():
    pytest.importorskip("deepctr_torch")
    data = GENERATOR.draw(4_000)
    outputs = []
    for _ in range(2):
        model = build_deepfm(GENERATOR.vocabulary_sizes, GENERATOR.dense_fields, TRAINING)
        train(model, data, TRAINING)
        assert not model.training
        with torch.no_grad():
            outputs.append(model(model_inputs(data)).flatten().numpy())
    np.testing.assert_array_equal(outputs[0], outputs[1])
    constant = np.full(data.rows, data.clicks.mean())
    assert score(data.clicks, outputs[0]).log_loss < score(data.clicks, constant).log_loss


def test_inputs_are_ids_then_dense_features():
    data = GENERATOR.draw(10)
    inputs = model_inputs(data).numpy()
    np.testing.assert_array_equal(inputs[:, :8], data.ids)
    np.testing.assert_array_equal(inputs[:, 8:], data.dense)


@pytest.mark.parametrize("wrong", [{"rows": 1}, {"threads": 0}])
def test_impossible_settings_are_refused(tmp_path, wrong):
    with pytest.raises(UserError):
        DemoSettings(out=tmp_path, **wrong)
