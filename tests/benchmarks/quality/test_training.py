"""Training learns, stops early, keeps the best epoch, and its checkpoints belong to one identity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from afm_fx.errors import FileFormatError, UserError
from benchmarks.common.ctr_models import ModelConfig, build_model
from benchmarks.quality.training import TrainingConfig, predict, regularization, train, train_or_load
from tests.benchmarks.ctr_data import generated_dataset

pytest.importorskip("deepctr_torch")
MODEL = ModelConfig(embedding_dim=4, hidden_units=(16,), l2_embedding=1e-6, dropout=0.0)
TRAINING = TrainingConfig(max_epochs=12, patience=2, batch_size=128, learning_rate=1e-2)


def test_training_learns_the_interaction_and_keeps_the_best_epoch() -> None:
    data = generated_dataset()
    model = build_model("DeepFM", data, MODEL)
    result = train(model, data.train, data.validation, TRAINING)
    aucs = [epoch.validation_auc for epoch in result.epochs]
    assert aucs[result.best - 1] == max(aucs)
    kept = roc_auc_score(data.validation.labels, predict(model, data.validation))
    assert kept == pytest.approx(max(aucs), abs=1e-9)
    assert roc_auc_score(data.test.labels, predict(model, data.test)) > 0.8
    assert not model.training


def test_training_stops_once_patience_is_spent() -> None:
    data = generated_dataset()
    config = TrainingConfig(max_epochs=40, patience=1, batch_size=128, learning_rate=3e-2)
    result = train(build_model("DeepFM", data, MODEL), data.train, data.validation, config)
    assert len(result.epochs) == result.best + 1 < 40


def test_same_seed_trains_the_same_weights() -> None:
    data = generated_dataset(1000)
    config = TrainingConfig(max_epochs=2, batch_size=128)
    models = [build_model("DeepFM", data, MODEL) for _ in range(2)]
    for model in models:
        train(model, data.train, data.validation, config)
    assert predict(models[0], data.test).tolist() == predict(models[1], data.test).tolist()


def test_embedding_penalty_is_part_of_the_loss() -> None:
    model = build_model("DeepFM", generated_dataset(200), ModelConfig(4, (8,), l2_embedding=0.5, l2_linear=0.0))
    tables = [weight for name, weight in model.state_dict().items() if name.startswith("embedding_dict.")]
    squares = sum(float(weight.square().sum()) for weight in tables)
    assert float(regularization(model)) == pytest.approx(0.5 * squares, rel=1e-5)
    assert float(regularization(torch.nn.Linear(2, 1))) == 0


def test_checkpoint_is_reused_for_the_same_identity_only(tmp_path: Path) -> None:
    data = generated_dataset(1000)
    config = TrainingConfig(max_epochs=1, batch_size=128)

    def run(identity: str) -> tuple[list[float], object]:
        model = build_model("DeepFM", data, MODEL)
        result = train_or_load(model, data.train, data.validation, config, folder=tmp_path, identity=identity)
        return predict(model, data.test).tolist(), result

    first = run("one")
    (file,) = tmp_path.iterdir()
    changed = torch.load(file, weights_only=True)
    changed["state"]["out.bias"].fill_(3.0)
    torch.save(changed, file)
    loaded = run("one")
    assert loaded[1] == first[1]
    assert loaded[0] != first[0]
    assert run("two")[0] == first[0]
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    data = generated_dataset(1000)
    config = TrainingConfig(max_epochs=1, batch_size=128)

    def run() -> None:
        model = build_model("DeepFM", data, MODEL)
        train_or_load(model, data.train, data.validation, config, folder=tmp_path, identity="one")

    run()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(FileFormatError, match=file.name):
        run()


@pytest.mark.parametrize("setting", [{"max_epochs": 0}, {"patience": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_bad_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be positive"):
        TrainingConfig(**setting)  # type: ignore[arg-type]
