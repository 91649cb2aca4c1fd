"""TorchRec models made plain: the same outputs on ragged batches, and the whole flow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afm_fx
import afm_fx.program.torchrec
from afm_fx.errors import BatchError, CaptureError, MissingPackageError, ModelError

DENSE, WIDTH = 5, 8
FEATURES = {"f2": 40, "f4": 30, "f1": 50, "f3": 50}
"""Features in the order in which batches hold them, with the rows of their tables; f1 and f3 share one."""

LENGTHS = {"f1": 4, "f2": 4, "f3": 4}


@pytest.fixture(scope="module")
def torchrec() -> Any:
    """The package, where it is installed."""
    return pytest.importorskip("torchrec", reason="docs/platforms.md tells how to install it", exc_type=ImportError)


def collection(torchrec: Any, *, weighted: bool) -> Any:
    """Sum and mean pooling, a shared table, a feature with one id in every row, and two codes for one feature."""
    configs = torchrec.modules.embedding_configs
    pooling = configs.PoolingType
    mean = pooling.SUM if weighted else pooling.MEAN
    tables = [("t1", 50, ["f1", "f3"], pooling.SUM), ("t2", 40, ["f2"], mean), ("t3", 30, ["f4"], pooling.SUM)]
    return torchrec.EmbeddingBagCollection(
        tables=[
            configs.EmbeddingBagConfig(
                name=name, embedding_dim=WIDTH, num_embeddings=rows, feature_names=features, pooling=each
            )
            for name, rows, features, each in tables
        ],
        is_weighted=weighted,
    )


def batch(torchrec: Any, rows: int, seed: int, *, weighted: bool = False) -> tuple[Tensor, Any]:
    """Dense features and lists of 0 to 3 ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = {name: torch.randint(0, 4, (rows,), generator=generator) for name in FEATURES}
    lengths["f4"] = torch.ones(rows, dtype=torch.long)
    values = torch.cat(
        [
            (torch.rand(int(lengths[name].sum()), generator=generator).square() * size).long()
            for name, size in FEATURES.items()
        ]
    )
    jagged = torchrec.KeyedJaggedTensor(
        keys=list(FEATURES),
        values=values,
        lengths=torch.cat([lengths[name] for name in FEATURES]),
        weights=torch.rand(len(values), generator=generator) if weighted else None,
    )
    return torch.randn(rows, DENSE, generator=generator), jagged


def built(torchrec: Any, name: str, *, weighted: bool) -> nn.Module:
    from torchrec.models.deepfm import SimpleDeepFMNN
    from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection

    tables = collection(torchrec, weighted=weighted)
    model: nn.Module = {
        "DLRM": lambda: DLRM(tables, DENSE, [16, WIDTH], [16, 1]),
        "DLRM_DCN": lambda: DLRM_DCN(tables, DENSE, [16, WIDTH], [16, 1], 2, 4),
        "DLRM_Projection": lambda: DLRM_Projection(tables, DENSE, [16, WIDTH], [16, 1], [2 * WIDTH], [3 * WIDTH]),
        "SimpleDeepFMNN": lambda: SimpleDeepFMNN(DENSE, tables, 16, 12),
    }[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(parameter.shape[-1], 4) ** 0.5)
    return model.eval()


@pytest.mark.parametrize("weighted", [False, True], ids=["counted", "weighted"])
@pytest.mark.parametrize("name", ["DLRM", "DLRM_DCN", "DLRM_Projection", "SimpleDeepFMNN"])
def test_the_plain_model_is_the_original_on_ragged_batches(torchrec: Any, name: str, weighted: bool) -> None:
    model = built(torchrec, name, weighted=weighted)
    plain = afm_fx.program.torchrec.plain(model, batch(torchrec, 16, 1, weighted=weighted), max_lengths=LENGTHS)
    inputs = batch(torchrec, 33, 2, weighted=weighted)
    assert int(inputs[1].lengths().min()) == 0
    torch.testing.assert_close(plain.model(*plain.convert(inputs)), model(*inputs), rtol=1e-6, atol=1e-6)
    shared = dict(plain.model.named_parameters())
    assert list(shared) == [name for name, _ in model.named_parameters()]
    assert all(shared[name] is parameter for name, parameter in model.named_parameters())


@pytest.mark.parametrize(("name", "weighted"), [("DLRM", False), ("SimpleDeepFMNN", True)])
def test_the_whole_flow_takes_a_torchrec_model(torchrec: Any, name: str, weighted: bool, tmp_path: Path) -> None:
    model = built(torchrec, name, weighted=weighted)
    plain = afm_fx.program.torchrec.plain(model, batch(torchrec, 16, 1, weighted=weighted), max_lengths=LENGTHS)
    inputs = batch(torchrec, 33, 2, weighted=weighted)
    rows = plain.convert(inputs)
    program = afm_fx.capture(plain.model, plain.convert(batch(torchrec, 6, 3, weighted=weighted)))
    torch.testing.assert_close(program.run(rows), model(*inputs).detach(), rtol=1e-6, atol=1e-6)
    batches = [plain.convert(batch(torchrec, 200, seed, weighted=weighted)) for seed in range(10, 13)]
    double = program.to(torch.float64)
    reference = double.run(rows)
    exact = afm_fx.compress(double, batches, afm_fx.FullRank()).program.run(rows)
    assert float((exact - reference).abs().max()) < 1e-10 * float(reference.abs().max())
    for policy in (afm_fx.Fixed(embedding=3, linear=6), afm_fx.Budget(parameters=0.5)):
        small = afm_fx.compress(program, batches, policy)
        assert small.plan.parameters_after < program.parameter_count()
        report = afm_fx.export_onnx(small.program, tmp_path / f"{type(policy).__name__}.onnx")
        assert report.max_abs_difference is not None
        assert report.max_abs_difference < 1e-5


def test_an_embedding_collection_is_read_as_padded_rows(torchrec: Any) -> None:
    configs = torchrec.modules.embedding_configs

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = configs.EmbeddingConfig(
                name="t", embedding_dim=WIDTH, num_embeddings=50, feature_names=["f1", "f3"]
            )
            self.rows = torchrec.EmbeddingCollection(tables=[table])

        def forward(self, sparse: Any) -> Tensor:
            found = self.rows(sparse)
            return torch.cat([found[name].to_padded_dense(4) for name in ("f3", "f1")], dim=1).sum(1)

    model, (_, jagged) = Reader(), batch(torchrec, 20, 1)
    plain = afm_fx.program.torchrec.plain(model, (jagged,), max_lengths={"f1": 4, "f3": 4})
    (rows,) = plain.convert((jagged,))
    torch.testing.assert_close(plain.model(rows), model(jagged), rtol=1e-6, atol=1e-6)
    program = afm_fx.capture(plain.model, plain.convert((batch(torchrec, 6, 2)[1],)))
    torch.testing.assert_close(program.run((rows,)), model(jagged).detach(), rtol=1e-6, atol=1e-6)


def test_what_cannot_be_made_plain_is_refused_with_the_reason(torchrec: Any) -> None:
    model, inputs = built(torchrec, "DLRM", weighted=False), batch(torchrec, 16, 1)
    with pytest.raises(CaptureError, match=r"KeyedJaggedTensor.*afm_fx.program.torchrec.plain"):
        afm_fx.capture(model, inputs)
    with pytest.raises(BatchError, match=r"max_lengths\['f1'\] is 2, and the example holds a row of 3"):
        afm_fx.program.torchrec.plain(model, inputs, max_lengths={"f1": 2})
    with pytest.raises(BatchError, match=r"names 'f9', which no collection reads"):
        afm_fx.program.torchrec.plain(model, inputs, max_lengths={"f9": 2})
    with pytest.raises(BatchError, match=r"hold no KeyedJaggedTensor"):
        afm_fx.program.torchrec.plain(model, (inputs[0],))
    with pytest.raises(ModelError, match=r"Linear has no EmbeddingBagCollection"):
        afm_fx.program.torchrec.plain(nn.Linear(2, 2), inputs)
    from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
    from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

    processed = FeatureProcessedEmbeddingBagCollection(
        collection(torchrec, weighted=True), PositionWeightedModuleCollection(dict.fromkeys(FEATURES, 4))
    )
    with pytest.raises(ModelError, match=r"'' is a FeatureProcessedEmbeddingBagCollection, which is not made plain"):
        afm_fx.program.torchrec.plain(processed, inputs)


def test_without_torchrec_the_page_that_tells_how_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchrec", None)
    with pytest.raises(MissingPackageError, match=r"docs/platforms.md"):
        afm_fx.program.torchrec.plain(nn.Linear(2, 2), (torch.zeros(2, 2),))
