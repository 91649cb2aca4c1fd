"""``afm-fx sweep``: from files to a table and files, with labels beside the inputs or without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from afm_fx.cli import app
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
    command += ["--evaluation", "clicks.npz", "--labels", "clicked", "--csv", "sweep.csv", "--json", "sweep.json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    document = json.loads((directory / "sweep.json").read_text())
    assert [point["budget"] for point in document["points"]] == [0.6, 0.3]
    assert document["labelled_rows"] == 80
    assert 0 < document["points"][1]["auc"] < 1
    assert f"{document['points'][0]['parameters']:,}" in result.output
    assert (directory / "sweep.csv").read_text().count("\n") == 4
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
