"""The models of deepctr-torch, built for an encoded dataset, with one set of hyperparameters by role."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from afm_fx.errors import UserError
from benchmarks.common.deepctr import import_deepctr
from benchmarks.datasets import CtrDataset

MODELS = (
    "AFM", "AFN", "AutoInt", "CCPM", "DCN", "DCN-matrix", "DCNMix", "DeepFM", "DIFM", "FiBiNET", "IFM", "MLR", "NFM",
    "ONN", "PNN", "WDL", "xDeepFM",
)  # fmt: skip
MULTI_TASK = ("ESMM", "MMOE", "PLE", "SharedBottom")
"""Models of two labels: their outputs are [rows, 2]."""
VARIANTS: dict[str, dict[str, Any]] = {"DCN-matrix": {"cross_parameterization": "matrix"}}
"""Models that are another one of deepctr-torch, named before the dash, with these arguments."""
SPARSE_FIELDS_ONLY_IN_THE_DEEP_PART = ("AFM", "CCPM")


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters; those a model does not have are left out.

    Attributes:
        embedding_dim: width of every embedding table.
        hidden_units: widths of the MLP.
        l2_embedding: weight of the squared norm of the embedding tables in the loss.
        l2_linear: the same for the linear term.
        dropout: in the MLP.
        seed: of the initialization.
    """

    embedding_dim: int = 16
    hidden_units: tuple[int, ...] = (400, 400, 400)
    l2_embedding: float = 1e-5
    l2_linear: float = 1e-5
    dropout: float = 0.3
    seed: int = 2024


def check_model_name(name: str, known: Sequence[str] = MODELS) -> None:
    """Refuses an unknown model before any long work.

    Raises:
        UserError: no such model.
    """
    if name not in known:
        raise UserError(f"unknown model '{name}'; known: {', '.join(known)}")


def build_model(name: str, dataset: CtrDataset, config: ModelConfig) -> nn.Module:
    """A freshly initialized model that takes ``Rows.inputs`` and returns click probabilities [rows, 1 or 2].

    Raises:
        UserError: no such model.
    """
    check_model_name(name, (*MODELS, *MULTI_TASK))
    deepctr = import_deepctr()
    inputs = deepctr.inputs
    sparse = [inputs.SparseFeat(field.name, field.vocabulary_size, config.embedding_dim) for field in dataset.sparse]
    columns = [*sparse, *(inputs.DenseFeat(dense, 1) for dense in dataset.dense)]
    deep_columns = sparse if name in SPARSE_FIELDS_ONLY_IN_THE_DEEP_PART else columns
    factory = getattr(deepctr.models, name.partition("-")[0])
    accepted = inspect.signature(factory).parameters
    arguments: dict[str, Any] = {
        "dnn_hidden_units": config.hidden_units,
        "l2_reg_embedding": config.l2_embedding,
        "l2_reg_linear": config.l2_linear,
        "dnn_dropout": config.dropout,
        "seed": config.seed,
    }
    roles = [parameter for parameter in accepted if parameter.endswith("feature_columns")]
    positional = [deep_columns if role == "dnn_feature_columns" else columns for role in roles]
    torch.manual_seed(config.seed)
    known = {key: value for key, value in arguments.items() if key in accepted}
    model: nn.Module = factory(*positional, **known, **VARIANTS.get(name, {}))
    return model
