"""The README's Python and its commands run, and its example is the one in examples/."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afm_fx.cli import app
from examples import click_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the example's checkpoint and rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    click_model.train(rows=8_192, epochs=1)
    return tmp_path


def test_the_python_compresses_the_example_to_its_budget(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    (block,) = blocks("python")
    variables: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), variables)  # noqa: S102 - the README is ours
    report = variables["compressed"].report  # type: ignore[attr-defined]
    assert report.parameters_after <= 0.2 * report.parameters_before
    assert (trained / "low_rank.onnx").is_file()
    assert "largest difference to torch" in capsys.readouterr().out


def test_the_script_in_examples_is_the_readmes_python() -> None:
    _, _, script = (ROOT / "examples" / "compress_your_model.py").read_text(encoding="utf-8").split('"""', 2)
    assert [script.strip()] == [block.strip() for block in blocks("python")]


def test_the_commands_run_one_after_the_other(trained: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pygraphviz")
    commands = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    assert [shlex.split(command)[:2] for command in commands] == [
        ["afm-fx", name] for name in ("explain", "compress", "bench")
    ]
    for command in commands:
        quick = ["--seconds", "0.01", "--batch-sizes", "1,8"] if " bench " in command else []
        result = CliRunner().invoke(app, [*shlex.split(command)[1:], *quick])
        assert result.exit_code == 0, result.output
    assert {each.name for each in (trained / "compressed").iterdir()} == {
        "dense.onnx", "low_rank.onnx", "plan.safetensors", "report.json",
    }  # fmt: skip
    assert "tables.0 \u2026 5" in (trained / "explanation.html").read_text(encoding="utf-8")


def test_every_link_into_the_tree_leads_to_a_file() -> None:
    links = re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
