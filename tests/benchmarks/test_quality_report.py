"""The report shows what was measured and what could not be, and names no place on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from afm_fx.errors import OutputExistsError, UserError
from benchmarks.quality_report import output_paths, shown_command
from benchmarks.quality_run import parse_widths


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset", "criteo", "--path", "/home/me/data", "--model", "DCN", "--force", "--checkpoint-dir", "/home/c"],
        ["--dataset", "criteo", "--path=/home/me/data", "--model", "DCN", "--output-dir=/home/o"],
    ],
)
def test_shown_command_keeps_what_matters_and_no_local_paths(arguments: list[str]) -> None:
    assert shown_command(arguments) == "python benchmarks/quality.py --dataset criteo --path DIR --model DCN"


def test_existing_results_are_kept_unless_forced(tmp_path: Path) -> None:
    markdown, _ = output_paths(tmp_path, "criteo", "DCN", force=False)
    markdown.write_text("results")
    with pytest.raises(OutputExistsError, match=markdown.name):
        output_paths(tmp_path, "criteo", "DCN", force=False)
    assert output_paths(tmp_path, "criteo", "DCN", force=True)[0] == markdown


def test_a_tag_tells_runs_apart(tmp_path: Path) -> None:
    names = {output_paths(tmp_path, "criteo", "DCN", tag=tag, force=False)[0].name for tag in (None, "short")}
    assert names == {"quality-criteo-DCN.md", "quality-criteo-DCN-short.md"}


def test_widths_are_parsed_or_refused() -> None:
    assert parse_widths("400-200") == (400, 200)
    for text in ("", "400-", "400-0", "a", "400,200"):
        with pytest.raises(UserError, match="joined by"):
            parse_widths(text)
