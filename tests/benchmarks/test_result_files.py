from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_fx.errors import OutputExistsError
from benchmarks.result_files import markdown_table, result_files, shown_command


def test_both_files_are_written_into_a_new_folder(tmp_path: Path) -> None:
    files = result_files(tmp_path / "new", "latency", force=False)
    files.write("# page\n", {"a": 1})
    assert (tmp_path / "new" / "latency.md").read_text() == "# page\n"
    assert json.loads((tmp_path / "new" / "latency.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("existing", ["latency.md", "latency.json"])
def test_existing_results_are_refused_unless_forced(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("old")
    with pytest.raises(OutputExistsError, match=existing):
        result_files(tmp_path, "latency", force=False)
    result_files(tmp_path, "latency", force=True).write("new", {})
    assert (tmp_path / "latency.md").read_text() == "new"


def test_the_shown_command_names_nobodys_folders() -> None:
    arguments = ["--seconds", "2", "--output-dir", "/home/x", "--work-dir=/home/y", "--force", "--threads", "1"]
    assert shown_command("benchmarks/latency.py", arguments) == "python benchmarks/latency.py --seconds 2 --threads 1"


def test_a_markdown_table_aligns_text_left_and_numbers_right() -> None:
    text = markdown_table(("name", "us"), [("dense", 152), ("low rank", 109)])
    assert text == "| name | us |\n| --- | ---: |\n| dense | 152 |\n| low rank | 109 |"
