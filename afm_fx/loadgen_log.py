"""Reads the detailed log that MLPerf LoadGen writes of a run; no number is computed beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_fx.errors import FileFormatError

DETAIL, SUMMARY = "mlperf_log_detail.txt", "mlperf_log_summary.txt"
_MARK = ":::MLLOG"


@dataclass(frozen=True)
class LoadGenLog:
    """What LoadGen says of one run.

    Attributes:
        values: its last value for every key, such as "result_validity" or "result_99.00_percentile_latency_ns".
        errors: what it calls errors.
    """

    values: Mapping[str, Any]
    errors: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Its verdict: duration, number of queries, latency bound and confidence are as they should be."""
        return self.values.get("result_validity") == "VALID" and not self.errors

    @property
    def bound_held(self) -> bool:
        """Whether the latency percentile was within its bound, however few queries that rests on."""
        return bool(self.values.get("result_perf_constraints_met"))

    @property
    def reason(self) -> str:
        """Why the run is not valid, empty where it is."""
        if self.valid:
            return ""
        reasons = [str(self.values.get("result_invalid_reason", "")).strip()]
        if not self.values.get("early_stopping_met", True):
            told = str(self.values.get("early_stopping_result", "")).replace("*", " ")
            reasons.append(" ".join(told.split()))
        return " ".join([*filter(None, reasons), *self.errors])

    def number(self, key: str) -> float:
        """A result.

        Raises:
            FileFormatError: the log has no such key.
        """
        if key not in self.values:
            raise FileFormatError(f"LoadGen's log has no '{key}'; another version of mlcommons-loadgen wrote it")
        return float(self.values[key])

    def percentile_us(self, percentile: float) -> float:
        """A percentile of the latencies in microseconds.

        Raises:
            FileFormatError: LoadGen did not log it.
        """
        return self.number(f"result_{percentile:.2f}_percentile_latency_ns") / 1e3


def read_log(directory: Path) -> LoadGenLog:
    """Reads the log of the run whose logs lie in a directory.

    Raises:
        FileFormatError: there is no log, or it breaks off before the results.
    """
    path = directory / DETAIL
    if not path.is_file():
        raise FileFormatError(f"LoadGen left no '{path}'")
    values: dict[str, Any] = {}
    errors = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        mark, _, text = line.partition(" ")
        if mark != _MARK:
            continue
        try:
            entry = json.loads(text)
        except json.JSONDecodeError:
            continue  # LoadGen does not escape what it quotes, say in names of files
        values[entry["key"]] = entry["value"]
        if entry.get("metadata", {}).get("is_error"):
            errors.append(str(entry["value"]))
    if "result_validity" not in values:
        raise FileFormatError(f"'{path}' breaks off before the results")
    return LoadGenLog(values, tuple(errors))
