"""LoadGen's log is read as it stands; a broken one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afm_fx.errors import FileFormatError
from afm_fx.loadgen_log import DETAIL, read_log


def line(key: str, value: Any, *, error: bool = False) -> str:
    return f":::MLLOG {json.dumps({'key': key, 'value': value, 'metadata': {'is_error': error}})}"


def written(directory: Path, *lines: str) -> Path:
    (directory / DETAIL).write_text("\n".join(lines) + "\n")
    return directory


def test_values_are_read_by_key_and_lines_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    log = read_log(
        written(
            tmp_path, "garbage", ":::MLLOG {broken", line("result_validity", "VALID"),
            line("result_99.00_percentile_latency_ns", 2500),
        )
    )  # fmt: skip
    assert log.valid
    assert log.percentile_us(99.0) == 2.5
    with pytest.raises(FileFormatError, match="result_query_count"):
        log.number("result_query_count")


def test_an_error_that_loadgen_notes_makes_a_run_invalid_and_is_the_reason(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, line("result_validity", "VALID"), line("error_runtime", "too many", error=True)))
    assert not log.valid
    assert log.reason == "too many"


def test_too_few_queries_for_confidence_are_the_reason(tmp_path: Path) -> None:
    told = " * Only processed 5 queries.  * Need to process at least 64 queries"
    lines = line("result_validity", "INVALID"), line("early_stopping_met", False), line("early_stopping_result", told)
    assert read_log(written(tmp_path, *lines)).reason.startswith("Only processed 5 queries.")


def test_a_log_that_is_missing_or_breaks_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="left no"):
        read_log(tmp_path)
    with pytest.raises(FileFormatError, match="breaks off"):
        read_log(written(tmp_path, line("requested_scenario", "Server")))
