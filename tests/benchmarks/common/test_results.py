from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from afm_fx.errors import OutputExistsError
from afm_fx.io import this_machine
from benchmarks.common.results import Table, result_files, shown_command


@dataclass(frozen=True)
class Measured:
    seconds: float


def test_page_and_data_are_written_into_a_new_folder_and_the_page_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["__main__.py", "latency", "--seconds", "2"])
    files = result_files(tmp_path / "new", "latency", None, "short", force=False)
    files.write("Latency", ["In words.", Table(("name", "us"), [("dense", 152)])], {"runs": [Measured(0.5)]})
    page = (tmp_path / "new" / "latency-short.md").read_text()
    command = "python -m benchmarks latency --seconds 2"
    for text in ("# Latency", f"`{command}`", this_machine().line(), "In words."):
        assert text in page
        assert text in capsys.readouterr().out or text != "# Latency"
    assert page.endswith("| name | us |\n| --- | ---: |\n| dense | 152 |\n")
    content = json.loads((tmp_path / "new" / "latency-short.json").read_text())
    assert content["command"] == command
    assert content["machine"]["cores"] == this_machine().cores
    assert content["runs"] == [{"seconds": 0.5}]


@pytest.mark.parametrize("existing", ["latency.md", "latency.json"])
def test_existing_results_are_refused_unless_forced(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("old")
    with pytest.raises(OutputExistsError, match=existing):
        result_files(tmp_path, "latency", force=False)
    result_files(tmp_path, "latency", force=True).write("new", [], {})
    assert (tmp_path / "latency.md").read_text().startswith("# new")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset", "criteo", "--path", "/home/me/data", "--model", "DCN", "--force", "--checkpoint-dir", "/home/c"],
        ["--dataset", "criteo", "--path=/home/me/data", "--work-dir=/home/w", "--model", "DCN", "--output-dir=/home/o"],
    ],
)
def test_the_shown_command_keeps_what_matters_and_names_nobodys_folders(arguments: list[str]) -> None:
    shown = shown_command(["quality", *arguments])
    assert shown == "python -m benchmarks quality --dataset criteo --path DIR --model DCN"
