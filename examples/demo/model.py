"""The demo's model: a small DeepFM of deepctr-torch, trained in a plain loop."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from afm_fx.errors import UserError
from afm_fx.io import progress_bar
from afm_fx.measure import auc
from examples.generated_clicks import ClickData

INSTALL_HINT = "the demo needs deepctr-torch: pip install 'afm-fx[deepctr,cpu]'"


@dataclass(frozen=True)
class Training:
    """How the demo's model is built and trained.

    Attributes:
        embedding_width: columns of every embedding table.
        hidden_units: widths of the MLP's layers.
        epochs: passes over the training rows.
        batch_size: rows a step.
        learning_rate: Adam's, the highest of a one-cycle schedule.
        seed: of the weights and of the order of rows.
    """

    embedding_width: int = 16
    hidden_units: tuple[int, ...] = (400, 400, 400)
    epochs: int = 2
    batch_size: int = 1024
    learning_rate: float = 2e-3
    seed: int = 2024

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError("training needs at least 1 epoch and a batch of at least 1 row")


@dataclass(frozen=True)
class Quality:
    """How well clicks are predicted.

    Attributes:
        auc: area under the ROC curve.
        log_loss: mean negative log-likelihood, in nats.
    """

    auc: float
    log_loss: float


def model_inputs(data: ClickData) -> Tensor:
    """The one input of a deepctr-torch model: [rows, fields] float32, ids first, then dense features."""
    return torch.from_numpy(np.concatenate([data.ids.astype(np.float32), data.dense], axis=1))


def build_deepfm(vocabulary_sizes: tuple[int, ...], dense_fields: int, training: Training) -> nn.Module:
    """An untrained DeepFM with one table per id field.

    Raises:
        UserError: deepctr-torch is not installed.
    """
    try:
        _import_quietly()
        from deepctr_torch.inputs import DenseFeat, SparseFeat  # noqa: PLC0415 - an extra, and slow to import
        from deepctr_torch.models import DeepFM  # noqa: PLC0415 - the same
    except ImportError as error:
        raise UserError(f"{INSTALL_HINT} ({error})") from error
    columns = [
        SparseFeat(f"C{number}", vocabulary_size=size, embedding_dim=training.embedding_width)
        for number, size in enumerate(vocabulary_sizes, 1)
    ]
    columns += [DenseFeat(f"I{number}") for number in range(1, dense_fields + 1)]
    model: nn.Module = DeepFM(
        columns, columns, dnn_hidden_units=training.hidden_units, init_std=0.01, seed=training.seed
    )
    return model


def _import_quietly() -> None:
    """Imports deepctr-torch without the request for its newest version that it sends from a thread, and then prints."""
    import requests  # noqa: PLC0415 - comes with the extra

    running = set(threading.enumerate())
    with mock.patch.object(requests, "get", return_value=SimpleNamespace(status_code=None)):
        import deepctr_torch  # noqa: F401, PLC0415 - imported for its side effect, here where it is silenced

        for thread in set(threading.enumerate()) - running:
            thread.join(timeout=5)


def train(model: nn.Module, data: ClickData, training: Training) -> None:
    """Trains in place, with a progress bar that shows the running LogLoss; leaves the model in eval mode."""
    inputs, clicks = model_inputs(data), torch.from_numpy(data.clicks)
    steps = training.epochs * -(-data.rows // training.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=steps)
    order = torch.Generator().manual_seed(training.seed)
    running: float | None = None
    model.train()
    with progress_bar() as bar:
        task = bar.add_task("Training", total=steps)
        for _ in range(training.epochs):
            for rows in torch.split(torch.randperm(data.rows, generator=order), training.batch_size):
                loss = functional.binary_cross_entropy(model(inputs[rows]).flatten(), clicks[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
                bar.update(task, advance=1, description=f"Training (LogLoss {running:.4f})")
    model.eval()


def score(clicks: NDArray[np.float32], probabilities: NDArray[np.floating]) -> Quality:
    """AUC and LogLoss of predicted click probabilities."""
    truth, scores = clicks.astype(np.float64), probabilities.astype(np.float64)
    log_loss = functional.binary_cross_entropy(torch.from_numpy(scores), torch.from_numpy(truth))
    return Quality(auc(truth, scores), float(log_loss))
