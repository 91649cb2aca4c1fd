"""A small generated dataset whose clicks depend on an interaction of two fields."""

from __future__ import annotations

import numpy as np

from benchmarks.datasets import CtrDataset, EncodingConfig, RawTable, encode


def generated_table(rows: int = 6000) -> RawTable:
    generator = np.random.default_rng(11)
    user, item = generator.integers(0, 40, rows), generator.integers(0, 30, rows)
    tastes, traits = generator.normal(size=(40, 2)), generator.normal(size=(30, 2))
    dense = generator.normal(size=rows)
    logit = 2 * (tastes[user] * traits[item]).sum(1) + dense
    labels = (generator.uniform(size=rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return RawTable(
        labels,
        {"user": user.astype(np.uint64), "item": item.astype(np.uint64)},
        {"dense": dense.astype(np.float32)},
    )


def generated_dataset(rows: int = 6000) -> CtrDataset:
    return encode(generated_table(rows), EncodingConfig())
