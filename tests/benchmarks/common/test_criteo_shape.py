from __future__ import annotations

import pytest
import torch

from benchmarks.common.criteo_shape import CriteoShape, plant_spectrum

SMALL = CriteoShape(total_rows=5000, sparse_fields=4, dense_fields=3, width=8, hidden=(16, 16))


def test_the_default_is_the_shape_of_the_design_table() -> None:
    shape = CriteoShape()
    assert len(shape.table_rows) == 26
    assert sum(shape.table_rows) == 1_000_000
    assert (shape.width, shape.dense_fields, shape.hidden) == (16, 13, (400, 400, 400))
    assert min(shape.table_rows) >= 2
    assert max(shape.table_rows) > 100 * min(shape.table_rows)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        _ = CriteoShape(total_rows=10).table_rows


def test_traffic_stays_inside_the_tables_and_prefers_small_ids() -> None:
    x = SMALL.batch(2000, seed=0)
    assert x.shape == (2000, 7)
    assert x.dtype == torch.float32
    for field, rows in enumerate(SMALL.table_rows):
        ids = x[:, field]
        assert torch.equal(ids, ids.floor())
        assert ids.min() >= 0
        assert ids.max() < rows
    assert (x[:, 3] == 0).sum() > (x[:, 3] == 100).sum()
    assert torch.equal(x, SMALL.batch(2000, seed=0))
    assert not torch.equal(x, SMALL.batch(2000, seed=1))


def test_a_planted_table_has_the_spectrum_asked_for() -> None:
    table = torch.empty(20_000, 6)
    plant_spectrum(table, 0.5, torch.Generator().manual_seed(0), scale=2.0)
    spread = torch.linalg.svdvals(table.double()) / 20_000**0.5
    torch.testing.assert_close(spread, 2.0 * 0.5 ** torch.arange(6, dtype=torch.float64), rtol=0.05, atol=0)


def test_the_model_has_the_sizes_and_tells_rows_apart() -> None:
    pytest.importorskip("deepctr_torch")
    model = SMALL.deepfm(seed=0)
    weights = dict(model.named_parameters())
    assert tuple(weights["embedding_dict.C4.weight"].shape) == (SMALL.table_rows[3], 8)
    assert tuple(weights["dnn.linears.0.weight"].shape) == (16, 4 * 8 + 3)
    assert not model.training
    predictions = model(SMALL.batch(64, seed=3))
    assert predictions.std() > 0.01
