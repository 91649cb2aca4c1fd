"""Models of torch-rechub and FuxiCTR, called as their users call them; run where the packages are installed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from tests.zoo.entry import randomize

WIDTH = 8
SIZES = {"user": 40, "item": 60, "city": 20, "cate": 25}
TAGS, TAGS_LENGTH = 25, 5


def batch(rows: int, seed: int) -> dict[str, Tensor]:
    """Ids by feature, one dense feature, and a padded list of tags."""
    generator = torch.Generator().manual_seed(seed)

    def ids(size: int, *more: int) -> Tensor:
        return (torch.rand((rows, *more), generator=generator).square() * size).long()

    columns = {name: ids(size) for name, size in SIZES.items()}
    return {**columns, "price": torch.rand(rows, generator=generator), "tags": ids(TAGS, TAGS_LENGTH)}


def assert_the_flow_is_exact(model: nn.Module, batch: Callable[[int, int], Any], folder: Path) -> None:
    """Capture bit for bit on another batch, full rank to rounding, a smaller model exported and checked."""
    randomize(model, torch.Generator().manual_seed(0))
    model.eval()
    rows = batch(33, 1)
    program = afm_fx.capture(model, batch(6, 0))
    torch.testing.assert_close(program.run(rows), model(rows), rtol=0, atol=0)
    double, batches = program.to(torch.float64), [batch(100, 2), batch(100, 3)]
    exact = afm_fx.compress(double, batches, afm_fx.FullRank(), pack=False)
    torch.testing.assert_close(exact.program.run(rows), double.run(rows), rtol=1e-10, atol=1e-10)
    small = afm_fx.compress(program, batches, afm_fx.Fixed(embedding=3, linear=6), basis="afm")
    assert small.program.parameter_count() < program.parameter_count()
    assert [site.rank for site in small.plan.sites if str(site.kind) == "embedding"].count(3) >= len(SIZES)
    report = afm_fx.export_onnx(small.program, folder / "model.onnx")
    assert report.max_abs_difference is not None
    assert report.max_abs_difference < 1e-5


@pytest.mark.parametrize("name", ["DeepFM", "DCN", "FiBiNet", "MMOE"])
def test_a_model_of_torch_rechub_takes_its_dict(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch_rechub")
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models import multi_task, ranking

    sparse = [SparseFeature(name, vocab_size=size, embed_dim=WIDTH) for name, size in SIZES.items()]
    tags = SequenceFeature("tags", vocab_size=TAGS, embed_dim=WIDTH, pooling="mean", padding_idx=0)
    features, mlp = [*sparse, tags, DenseFeature("price")], {"dims": [24, 12], "dropout": 0.2, "activation": "relu"}
    model = {
        "DeepFM": lambda: ranking.DeepFM(features, sparse, mlp),
        "DCN": lambda: ranking.DCN(features, 2, mlp),
        "FiBiNet": lambda: ranking.FiBiNet(sparse, mlp),
        "MMOE": lambda: multi_task.MMOE(features, ["classification"] * 2, 3, {"dims": [16]}, [{"dims": [8]}] * 2),
    }[name]()
    assert_the_flow_is_exact(model, batch, tmp_path)


def test_a_model_of_fuxictr_takes_the_dict_of_its_feature_map(tmp_path: Path) -> None:
    pytest.importorskip("fuxictr.pytorch.models", exc_type=ImportError)
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    known: OrderedDict[str, dict[str, Any]] = OrderedDict(
        (name, {"source": "", "type": "categorical", "vocab_size": size}) for name, size in SIZES.items()
    )
    known["price"] = {"source": "", "type": "numeric"}
    known["tags"] = {
        "source": "", "type": "sequence", "vocab_size": TAGS, "max_len": TAGS_LENGTH, "padding_idx": 0,
        "feature_encoder": "layers.MaskedAveragePooling()",
    }  # fmt: skip
    feature_map = FeatureMap("clicks", str(tmp_path))
    feature_map.features, feature_map.labels, feature_map.default_emb_dim = known, ["click"], WIDTH
    feature_map.num_fields = feature_map.get_num_fields()

    class Model(BaseModel):
        """A factorization machine beside an MLP, of FuxiCTR's own layers."""

        def __init__(self) -> None:
            super().__init__(feature_map, verbose=0, model_root=str(tmp_path), metrics=["AUC"])
            self.embedding_layer = FeatureEmbedding(feature_map, WIDTH)
            self.fm = FactorizationMachine(feature_map)
            self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), hidden_units=[24, 12], output_dim=1, batch_norm=True)

        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            columns = self.get_inputs(inputs)
            features = self.embedding_layer(columns)
            return {"y_pred": self.output_activation(self.fm(columns, features) + self.mlp(features.flatten(1)))}

    assert_the_flow_is_exact(Model(), batch, tmp_path)
