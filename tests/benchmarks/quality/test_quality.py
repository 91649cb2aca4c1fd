"""The benchmark runs from raw files to committed results; a user's mistakes exit with 2 and write nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from afm_fx.errors import UserError
from benchmarks.__main__ import app
from benchmarks.quality.paired_bootstrap import AucDifference
from benchmarks.quality.quality import parse_widths

pytest.importorskip("deepctr_torch")


@pytest.fixture
def criteo_folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(5)
    lines = []
    for _ in range(600):
        integers = [str(number) if number else "" for number in generator.integers(0, 9, 13)]
        categories = [f"{number:08x}" if number else "" for number in generator.integers(0, 6, 26)]
        label = int(generator.uniform() < (0.7 if categories[0] else 0.2))
        lines.append("\t".join([str(label), *integers, *categories]))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    return folder


def arguments(folder: Path, output: Path, **changes: str) -> list[str]:
    options = {
        "dataset": "criteo",
        "path": str(folder),
        "model": "DeepFM",
        "embedding-dim": "4",
        "hidden-units": "16-16",
        "batch-size": "64",
        "learning-rate": "0.01",
        "max-epochs": "2",
        "budget": "0.6",
        "resamples": "20",
        "output-dir": str(output),
    }
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    return ["quality", *(part for name, value in options.items() for part in (f"--{name}", value))]


@pytest.mark.thorough
def test_run_prints_and_writes_what_it_measured(
    criteo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results"
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("benchmarks.quality.comparison.TIMED_SECONDS", 0.01)
    timed = [*arguments(criteo_folder, output, tag="short"), "--latency-batch-size", "2"]
    monkeypatch.setattr("sys.argv", ["__main__.py", *timed])
    done = CliRunner().invoke(app, timed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    content = json.loads((output / "quality-criteo-DeepFM-short.json").read_text())
    comparison = content["comparison"]
    timings = comparison["timing"]["timings"]
    assert [(each["contender"], each["batch_size"]) for each in timings] == [("original", 2), ("budget 0.6", 2)]
    assert content["dataset"]["train_rows"] == 480
    assert len(content["dataset"]["sparse_fields"]) == 26
    assert content["training"]["best"] in (1, 2)
    page = (output / "quality-criteo-DeepFM-short.md").read_text()
    for text in (done.output, page):
        assert f"{comparison['auc']:.4f}" in text
        for variant in comparison["variants"]:
            assert f"{variant['parameters']:,}" in text
            assert f"{variant['auc']:.4f}" in text
            for role in ("to_original", "to_peer"):
                if variant[role]:
                    assert str(AucDifference(**variant[role])) in text, "no interval is broken over two lines"
    assert str(tmp_path) not in page
    assert str(tmp_path) not in json.dumps(content)

    again = CliRunner().invoke(app, timed)
    assert again.exit_code == 2
    assert "--force" in again.output


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"dataset": "criteoo"}, "criteoo"),
        ({"model": "DeepFMM"}, "DeepFMM"),
        ({"path": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"hidden_units": "16,16"}, "16,16"),
        ({"budget": "1.5"}, "1.5"),
    ],
)
def test_mistakes_exit_with_two_and_write_nothing(
    changes: dict[str, str], culprit: str, criteo_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results"
    done = CliRunner().invoke(app, arguments(criteo_folder, output, **changes))
    assert done.exit_code == 2, done.output
    assert culprit in done.output
    assert not output.exists()


def test_widths_are_parsed_or_refused() -> None:
    assert parse_widths("400-200") == (400, 200)
    for text in ("", "400-", "400-0", "a", "400,200"):
        with pytest.raises(UserError, match="joined by"):
            parse_widths(text)
