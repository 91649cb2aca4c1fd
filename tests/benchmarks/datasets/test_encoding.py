"""Vocabularies and scales come from the training rows alone; the split is fixed by its seed."""

from __future__ import annotations

import numpy as np
import pytest

from afm_fx.errors import UserError
from benchmarks.datasets import EncodingConfig, RawTable, encode
from benchmarks.datasets.encoding import lookup, standardize


def raw_table(rows: int = 400) -> RawTable:
    generator = np.random.default_rng(0)
    return RawTable(
        labels=generator.integers(0, 2, rows).astype(np.float32),
        categorical={
            "city": generator.integers(10**12, 10**12 + 5, rows).astype(np.uint64),
            "row": np.arange(rows, dtype=np.uint64),
        },
        numeric={"age": generator.normal(40, 10, rows).astype(np.float32)},
    )


def test_split_has_the_asked_shares_and_no_row_twice() -> None:
    raw = raw_table()
    data = encode(raw, EncodingConfig(validation_share=0.2, test_share=0.1))
    assert (len(data.train), len(data.validation), len(data.test)) == (280, 80, 40)
    ages = np.concatenate([part.inputs[:, 2].numpy() for part in (data.train, data.validation, data.test)])
    assert len(np.unique(ages)) == len(np.unique(raw.numeric["age"]))


def test_split_is_fixed_by_the_seed() -> None:
    first, again, other = (encode(raw_table(), EncodingConfig(seed=seed)) for seed in (1, 1, 2))
    assert first.test.inputs.equal(again.test.inputs)
    assert not first.test.inputs.equal(other.test.inputs)


def test_categories_unseen_in_training_share_row_zero() -> None:
    data = encode(raw_table(), EncodingConfig())
    city, row = data.sparse
    assert (city.name, city.vocabulary_size) == ("city", 6)
    assert row.vocabulary_size == len(data.train) + 1
    assert (data.test.inputs[:, 1] == 0).all()
    assert sorted(data.train.inputs[:, 1].tolist()) == list(range(1, len(data.train) + 1))
    assert (data.test.inputs[:, 0] > 0).all()


def test_rare_categories_share_row_zero() -> None:
    data = encode(raw_table(), EncodingConfig(min_count=2))
    assert [field.vocabulary_size for field in data.sparse] == [6, 1]
    assert (data.train.inputs[:, 1] == 0).all()


def test_hash_buckets_fix_the_table_size() -> None:
    data = encode(raw_table(), EncodingConfig(hash_buckets=7))
    assert [field.vocabulary_size for field in data.sparse] == [7, 7]
    assert set(data.train.inputs[:, 1].tolist()) == set(range(7))


def test_numbers_are_standardized_by_the_training_rows() -> None:
    data = encode(raw_table(), EncodingConfig())
    assert float(data.train.inputs[:, 2].mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.train.inputs[:, 2].std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert abs(float(data.test.inputs[:, 2].mean())) > 1e-3


def test_missing_numbers_become_the_mean_and_constant_features_zero() -> None:
    train = np.array([0, 1])
    scaled = standardize(np.array([1, 3, np.nan, 5], dtype=np.float32), train)
    assert scaled.tolist() == [-1, 1, 0, 3]
    assert standardize(np.array([4, 4, 9], dtype=np.float32), train).tolist() == [0, 0, 0]
    assert standardize(np.full(3, np.nan, dtype=np.float32), train).tolist() == [0, 0, 0]


def test_lookup_beyond_both_ends_and_in_an_empty_vocabulary_is_unknown() -> None:
    keys = np.array([0, 3, 4, 9], dtype=np.uint64)
    assert lookup(keys, np.array([3, 4], dtype=np.uint64)).tolist() == [0, 1, 2, 0]
    assert lookup(keys, np.array([], dtype=np.uint64)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "settings",
    [{"test_share": 0.0}, {"test_share": 0.5, "validation_share": 0.5}, {"min_count": 0}, {"hash_buckets": 0}],
)
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        EncodingConfig(**settings)  # type: ignore[arg-type]


def test_one_class_only_is_refused() -> None:
    raw = raw_table()
    with pytest.raises(UserError, match="clicks and non-clicks"):
        encode(RawTable(np.ones_like(raw.labels), raw.categorical, raw.numeric), EncodingConfig())
