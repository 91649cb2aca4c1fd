"""Every listed model can be built, is seeded, and takes the encoded rows."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from afm_fx.errors import UserError
from benchmarks.common.ctr_models import MODELS, MULTI_TASK, ModelConfig, build_model
from benchmarks.serving.packing import FAILS_AT_ONE_ROW
from tests.benchmarks.ctr_data import generated_dataset

pytest.importorskip("deepctr_torch")
CONFIG = ModelConfig(embedding_dim=4, hidden_units=(8, 8), dropout=0.0)


@pytest.mark.parametrize("name", [*MODELS, *MULTI_TASK])
def test_every_model_gives_a_probability_per_row_and_label(name: str) -> None:
    data = generated_dataset(200)
    model = build_model(name, data, CONFIG).eval()
    scores = model(data.train.inputs[:5])
    assert scores.shape == (5, 2 if name in MULTI_TASK else 1)
    assert ((scores > 0) & (scores < 1)).all()


def test_a_model_that_is_said_to_fail_at_one_row_fails_in_torch_itself() -> None:
    data = generated_dataset(200)
    for name in FAILS_AT_ONE_ROW:
        with pytest.raises((RuntimeError, IndexError)):
            build_model(name, data, CONFIG).eval()(data.train.inputs[:1])


def test_tables_and_mlp_have_the_asked_widths() -> None:
    data = generated_dataset(200)
    model = build_model("DeepFM", data, CONFIG)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["embedding_dict.user.weight"] == (data.sparse[0].vocabulary_size, 4)
    assert shapes["dnn.linears.0.weight"] == (8, 2 * 4 + 1)
    assert shapes["dnn.linears.1.weight"] == (8, 8)


def test_the_seed_fixes_the_initialization() -> None:
    data = generated_dataset(200)
    first, again, other = (
        build_model("DeepFM", data, ModelConfig(4, (8,), seed=seed)).state_dict() for seed in (1, 1, 2)
    )
    key = "embedding_dict.user.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


def test_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="DeepFM"):
        build_model("deepfm2", generated_dataset(200), CONFIG)


def test_import_starts_no_thread_and_prints_nothing() -> None:
    code = (
        "import threading; started = []; start = threading.Thread.start\n"
        "threading.Thread.start = lambda self: (started.append(self), start(self))[1]\n"
        "from benchmarks.common.deepctr import import_deepctr\n"
        "before = threading.Thread.start; del started[:]; import_deepctr()\n"
        "assert not started, started\n"
        "assert threading.Thread.start is before\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this file's own code
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
