"""``afm-fx sweep``: from files to a table and files, with labels beside the inputs or without."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from afm_fx.commands.cli import app
from tests.wide_and_deep import rows_of_ids

FACTORY = """
import torch
from tests.wide_and_deep import WideAndDeep, rows_of_ids

def clicks():
    torch.manual_seed(5)
    return WideAndDeep().eval(), (rows_of_ids(4),)
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model's factory, rows to calibrate on and rows with clicks."""
    (tmp_path / "swept_model.py").write_text(FACTORY)
    np.savez(tmp_path / "rows.npz", ids=rows_of_ids(500).numpy())
    np.savez(tmp_path / "clicks.npz", ids=rows_of_ids(80, 3).numpy(), clicked=np.arange(80) % 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_prints_the_table_and_writes_what_was_asked_for(directory: Path) -> None:
    command = ["sweep", "swept_model:clicks", "--data", "rows.npz", "--budgets", "0.3,0.6"]
    command += ["--evaluation", "clicks.npz", "--labels", "clicked", "--csv", "sweep.csv"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    original, *points = csv.DictReader((directory / "sweep.csv").read_text().splitlines())
    assert [float(point["budget"]) for point in points] == [0.6, 0.3]
    assert 0 < float(points[1]["auc"]) < 1
    assert int(points[1]["parameters"]) < int(points[0]["parameters"]) < int(original["parameters"])
    assert f"{int(points[0]['parameters']):,}" in result.output
    assert "80 labelled rows" in result.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "exists already" in again.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "clicked"], "belong together"),
        (["--budgets", "half"], "numbers with commas"),
        (["--budgets", "1.5"], "takes a share"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(directory: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["sweep", "swept_model:clicks", "--data", "rows.npz", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
