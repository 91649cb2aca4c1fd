"""The models of deepctr-torch 0.3.0 in miniature: few rows, narrow tables, small MLPs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.zoo.entry import ZooEntry

VOCABULARIES = {"C1": 53, "C2": 31, "C3": 97, "C4": 17, "C5": 71}
WIDTH = 8
DENSE = 3
HIDDEN = (32, 16)
HISTORY = 5


def deepctr_installed() -> bool:
    """Whether deepctr-torch can be imported."""
    return importlib.util.find_spec("deepctr_torch") is not None


def _deepctr(module: str) -> Any:
    """Imports a module of deepctr-torch without the look-up of its newest version that the package starts."""
    if "deepctr_torch.utils" not in sys.modules:
        quiet = types.ModuleType("deepctr_torch.utils")
        quiet.check_version = lambda version: None  # type: ignore[attr-defined]
        sys.modules["deepctr_torch.utils"] = quiet
    return importlib.import_module(f"deepctr_torch.{module}")


def _columns(*, dense: bool = True) -> list[Any]:
    inputs = _deepctr("inputs")
    sparse = [inputs.SparseFeat(name, size, embedding_dim=WIDTH) for name, size in VOCABULARIES.items()]
    return [*sparse, *([inputs.DenseFeat(f"I{i}", 1) for i in range(DENSE)] if dense else [])]


def ids_then_dense(rows: int, seed: int) -> torch.Tensor:
    """``[rows, fields]`` float32, as deepctr-torch takes it: ids, then dense features."""
    generator = torch.Generator().manual_seed(1_000 * seed + rows)
    ids = [_ids(rows, size, generator) for size in VOCABULARIES.values()]
    return torch.cat([*ids, torch.randn(rows, DENSE, generator=generator)], dim=1)


def _ids(rows: int, vocabulary: int, generator: torch.Generator, length: int = 1) -> torch.Tensor:
    uniform = torch.rand(rows, length, generator=generator)
    return (uniform.pow(2) * vocabulary).floor().clamp_(max=vocabulary - 1)


def _single_task(name: str, *, dense: bool = True, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model_class = getattr(_deepctr("models"), name)
        return model_class(_columns(), _columns(dense=dense), **options)

    return build


def _multi_task(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return getattr(_deepctr("models.multitask"), name)(_columns(), **options)

    return build


def _product_network(*, inner: bool, outer: bool) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model_class = _deepctr("models").PNN
        return model_class(_columns(), dnn_hidden_units=HIDDEN, use_inner=inner, use_outter=outer)

    return build


def _mixed_logistic_regression() -> nn.Module:
    columns = _columns()
    return _deepctr("models").MLR(columns, columns[-DENSE:], columns[:1], region_num=3)


def _history_columns() -> list[Any]:
    inputs = _deepctr("inputs")
    lists = [
        inputs.VarLenSparseFeat(
            inputs.SparseFeat(f"hist_{name}", size, embedding_dim=WIDTH, embedding_name=name), HISTORY, "mean", "length"
        )
        for name, size in (("item", 61), ("category", 13))
    ]
    sparse = [inputs.SparseFeat(name, size, WIDTH) for name, size in (("user", 37), ("item", 61), ("category", 13))]
    return [*sparse, inputs.DenseFeat("price", 1), *lists]


def history_rows(rows: int, seed: int) -> torch.Tensor:
    """user, item, category, price, hist_item x 5, length, hist_category x 5; histories are padded with 0."""
    generator = torch.Generator().manual_seed(1_000 * seed + rows)
    length = torch.randint(1, HISTORY + 1, (rows, 1), generator=generator)
    present = torch.arange(HISTORY) < length
    user, item, category = (_ids(rows, size, generator) for size in (37, 61, 13))
    price = torch.rand(rows, 1, generator=generator)
    items, categories = ((1 + _ids(rows, size - 1, generator, HISTORY)) * present for size in (61, 13))
    return torch.cat([user, item, category, price, items, length, categories], dim=1)


def _interest_network() -> nn.Module:
    return _deepctr("models").DIN(
        _history_columns(), ["item", "category"], dnn_hidden_units=HIDDEN, att_hidden_size=(16, 8)
    )


def _interest_evolution() -> nn.Module:
    return _deepctr("models").DIEN(
        _history_columns(), ["item", "category"], dnn_hidden_units=HIDDEN, att_hidden_units=(16, 8)
    )


def _pooled(combiners: tuple[str, ...], length_name: str | None) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        inputs = _deepctr("inputs")
        lists = [
            inputs.VarLenSparseFeat(inputs.SparseFeat(f"list_{how}", 41, WIDTH), HISTORY, how, length_name)
            for how in combiners
        ]
        columns = [*_columns(), *lists]
        return _deepctr("models").DeepFM(columns, columns, dnn_hidden_units=HIDDEN)

    return build


def _pooled_rows(lists: int, *, with_length: bool) -> Callable[[int, int], torch.Tensor]:
    def inputs(rows: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1_000 * seed + rows)
        length = torch.randint(1, HISTORY + 1, (rows, 1), generator=generator)
        present = torch.arange(HISTORY) < length
        first, *rest = ((1 + _ids(rows, 40, generator, HISTORY)) * present for _ in range(lists))
        return torch.cat([ids_then_dense(rows, seed), first, *([length] if with_length else []), *rest], dim=1)

    return inputs


def deepctr_entries() -> list[ZooEntry]:
    """The 22 models (DCN and PNN in two forms each), the sequence models, and pooled lists."""
    deep: dict[str, Any] = {"dnn_hidden_units": HIDDEN}
    towers: dict[str, Any] = {"tower_dnn_hidden_units": (16,)}
    experts: dict[str, Any] = {"expert_dnn_hidden_units": HIDDEN, "gate_dnn_hidden_units": (16,), **towers}
    builders: dict[str, Callable[[], nn.Module]] = {
        "AFM": _single_task("AFM", dense=False),
        "AFN": _single_task("AFN", ltl_hidden_size=16, afn_dnn_hidden_units=HIDDEN),
        "AutoInt": _single_task("AutoInt", att_layer_num=2, **deep),
        "CCPM": _single_task("CCPM", dense=False, conv_kernel_width=(3, 2), conv_filters=(2, 2), **deep),
        "DCN-vector": _single_task("DCN", cross_parameterization="vector", dnn_use_bn=True, **deep),
        "DCN-matrix": _single_task("DCN", cross_parameterization="matrix", **deep),
        "DCNMix": _single_task("DCNMix", low_rank=4, num_experts=2, **deep),
        "DeepFM": _single_task("DeepFM", dnn_use_bn=True, **deep),
        "DIFM": _single_task("DIFM", att_head_num=2, **deep),
        "FiBiNET": _single_task("FiBiNET", **deep),
        "IFM": _single_task("IFM", **deep),
        "MLR": _mixed_logistic_regression,
        "NFM": _single_task("NFM", **deep),
        "ONN": _single_task("ONN", **deep),
        "PNN-inner": _product_network(inner=True, outer=False),
        "PNN-outer": _product_network(inner=False, outer=True),
        "WDL": _single_task("WDL", dnn_use_bn=True, **deep),
        "xDeepFM": _single_task("xDeepFM", cin_layer_size=(8, 6), **deep),
        "ESMM": _multi_task("ESMM", tower_dnn_hidden_units=HIDDEN),
        "MMOE": _multi_task("MMOE", num_experts=2, **experts),
        "PLE": _multi_task("PLE", **experts),
        "SharedBottom": _multi_task("SharedBottom", bottom_dnn_hidden_units=HIDDEN, **towers),
    }
    entries = [ZooEntry(name, build, ids_then_dense, needs_deepctr=True) for name, build in builders.items()]
    return [
        *entries,
        ZooEntry("DIN", _interest_network, history_rows, needs_deepctr=True),
        ZooEntry("DIEN", _interest_evolution, history_rows, needs_deepctr=True, refused="data-dependent"),
        ZooEntry(
            "VarLen-masked",
            _pooled(("mean", "sum", "max"), None),
            _pooled_rows(3, with_length=False),
            needs_deepctr=True,
        ),
        # Without "max": deepctr-torch subtracts a bool mask there, which torch refuses.
        ZooEntry(
            "VarLen-length",
            _pooled(("mean", "sum"), "list_length"),
            _pooled_rows(2, with_length=True),
            needs_deepctr=True,
        ),
    ]
