"""Readers of public click-through-rate datasets in their raw published formats, one module per format."""

from __future__ import annotations

from benchmarks.datasets.catalog import DATASETS, read_raw
from benchmarks.datasets.encoding import CtrDataset, EncodingConfig, Rows, SparseField, encode
from benchmarks.datasets.raw import RawTable

__all__ = ["DATASETS", "CtrDataset", "EncodingConfig", "RawTable", "Rows", "SparseField", "encode", "read_raw"]
