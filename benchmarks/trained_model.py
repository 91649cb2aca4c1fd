"""A model trained on a public dataset, from its raw files, or from the checkpoint of an earlier run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from benchmarks.ctr_models import VARIANTS, ModelConfig, build_model
from benchmarks.datasets import CtrDataset, EncodingConfig, encode, read_raw
from benchmarks.training import Training, TrainingConfig, train_or_load


@dataclass(frozen=True)
class TrainedModel:
    """A model and the rows that it was trained, validated and is tested on.

    Attributes:
        model: in eval mode.
        data: its dataset.
        training: how training went.
    """

    model: nn.Module
    data: CtrDataset
    training: Training


def trained_model(
    dataset: str,
    path: Path,
    model: str,
    *,
    rows: int | None,
    encoding: EncodingConfig,
    config: ModelConfig,
    training: TrainingConfig,
    folder: Path | None,
) -> TrainedModel:
    """Reads the data and trains the model, or loads it.

    Args:
        dataset: a key of :data:`benchmarks.datasets.DATASETS`.
        path: folder of its raw files.
        model: one of :data:`benchmarks.ctr_models.MODELS`.
        rows: read only the first so many.
        encoding: split and vocabularies.
        config: hyperparameters of the model.
        training: of the training.
        folder: keeps the trained model, and reuses one of the same data and settings; None for neither.

    Raises:
        UserError: an unknown dataset or model, or data that cannot be read, split or trained on.
    """
    data = encode(read_raw(dataset, path, rows), encoding)
    original = build_model(model, data, config)
    fields = [(field.name, field.vocabulary_size) for field in data.sparse]
    identity = [dataset, rows, fields, asdict(encoding), asdict(config), *VARIANTS.get(model, {}).items()]
    done = train_or_load(original, data.train, data.validation, training, folder=folder, identity=identity)
    return TrainedModel(original, data, done)
