"""The command lists every benchmark without importing it, and runs it by its name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import benchmarks
from benchmarks.__main__ import FOLDERS, app, first_line

HERE = Path(benchmarks.__file__).parent
EVERY = [(folder, name) for folder, names in FOLDERS.items() for name in names]


def test_help_lists_every_benchmark_without_torch() -> None:
    code = "import sys; from benchmarks.__main__ import app; app(['--help'], standalone_mode=False); "
    code += "assert not {'torch', 'numpy', 'onnx'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - this file's own code
    listed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("\u2502 ")]
    assert [name for _, name in EVERY] == [word for word in listed if word in {name for _, name in EVERY}]


@pytest.mark.parametrize(("folder", "name"), EVERY)
def test_a_benchmark_tells_what_it_does_and_what_it_takes(folder: str, name: str) -> None:
    assert first_line(folder, name).endswith(".")
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert first_line(folder, name) in done.output
    assert "--output-dir" in done.output


def test_an_unknown_benchmark_is_a_mistake_in_the_call() -> None:
    done = CliRunner().invoke(app, ["latencies"])
    assert done.exit_code == 2
    assert "latencies" in done.output


def test_every_page_of_results_is_that_of_a_benchmark() -> None:
    pages = [path.stem for path in (HERE / "results").glob("*.md") if path.name != "README.md"]
    names = [name for _, name in EVERY]
    assert pages
    assert all(any(page.replace("_", "-").startswith(name) for name in names) for page in pages)
