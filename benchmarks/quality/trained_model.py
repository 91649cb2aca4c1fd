"""A model trained on a public dataset, from its raw files, or from the checkpoint of an earlier run."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.ctr_models import VARIANTS, ModelConfig, build_model, check_model_name
from benchmarks.datasets import CtrDataset, EncodingConfig, encode, read_raw
from benchmarks.quality.training import Training, TrainingConfig, train_or_load


@dataclass(frozen=True)
class TrainedModel:
    """A model and the rows that it was trained, validated and is tested on.

    Attributes:
        dataset: name of its dataset.
        name: its own.
        model: in eval mode.
        data: the rows.
        config: hyperparameters of the model.
        encoding: split and vocabularies.
        settings: of the training.
        training: how that went.
    """

    dataset: str
    name: str
    model: nn.Module
    data: CtrDataset
    config: ModelConfig
    encoding: EncodingConfig
    settings: TrainingConfig
    training: Training

    @property
    def title(self) -> str:
        """Of a page about it."""
        parts = (self.data.train, self.data.validation, self.data.test)
        return f"{self.name} on {self.dataset}, {sum(map(len, parts)):,} rows"

    def description(self) -> str:
        """Sizes, training and conditions, in words."""
        data, training = self.data, self.training
        return (
            f"{self.name} on {self.dataset}: {len(data.train):,} / {len(data.validation):,} / "
            f"{len(data.test):,} rows to train, validate and test; {len(data.sparse)} sparse fields "
            f"({sum(field.vocabulary_size for field in data.sparse):,} table rows x {self.config.embedding_dim}), "
            f"{len(data.dense)} dense, MLP {'-'.join(map(str, self.config.hidden_units))}. "
            f"Trained by Adam for {len(training.epochs)} epochs, the best validation AUC in epoch {training.best}; "
            f"{training.seconds:.0f} s of training. Seed {self.settings.seed}; "
            f"{torch.get_num_threads()} thread(s); deepctr-torch {importlib.metadata.version('deepctr-torch')}."
        )

    def content(self) -> dict[str, Any]:
        """The same as data."""
        data = self.data
        return {
            "dataset": {
                "name": self.dataset,
                "train_rows": len(data.train),
                "validation_rows": len(data.validation),
                "test_rows": len(data.test),
                "sparse_fields": {field.name: field.vocabulary_size for field in data.sparse},
                "dense_features": list(data.dense),
            },
            "model": self.name,
            "threads": torch.get_num_threads(),
            "deepctr_torch": importlib.metadata.version("deepctr-torch"),
            "encoding": self.encoding,
            "model_config": self.config,
            "training_config": self.settings,
            "training": self.training,
        }


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
    threads: int | None = None,
) -> TrainedModel:
    """Reads the data and trains the model, or loads it.

    Args:
        dataset: a key of :data:`benchmarks.datasets.DATASETS`.
        path: folder of its raw files.
        model: one of :data:`benchmarks.common.ctr_models.MODELS`.
        rows: read only the first so many.
        encoding: split and vocabularies.
        config: hyperparameters of the model.
        training: of the training.
        folder: keeps the trained model, and reuses one of the same data and settings; None for neither.
        threads: of torch, from now on; its own choice where None.

    Raises:
        UserError: an unknown dataset or model, or data that cannot be read, split or trained on.
    """
    check_model_name(model)
    if threads is not None:
        torch.set_num_threads(threads)
    data = encode(read_raw(dataset, path, rows), encoding)
    original = build_model(model, data, config)
    fields = [(field.name, field.vocabulary_size) for field in data.sparse]
    identity = [dataset, rows, fields, asdict(encoding), asdict(config), *VARIANTS.get(model, {}).items()]
    done = train_or_load(original, data.train, data.validation, training, folder=folder, identity=identity)
    return TrainedModel(dataset, model, original, data, config, encoding, training, done)
