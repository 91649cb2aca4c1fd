"""Help, a slip and a missing file are answered before anything heavy is imported; options are few, and in panels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import afm_fx
from afm_fx.commands.cli import app

ROOT = Path(__file__).parents[2]
GROUP: Any = typer.main.get_command(app)

ANSWERS = """
import json, sys
from typer.testing import CliRunner
from afm_fx.commands.cli import app

def answer(words):
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    heavy = {"numpy", "onnx", "onnxruntime", "pyarrow", "safetensors", "torch"} & set(sys.modules)
    return result.exit_code, result.output, sorted(heavy)

print(json.dumps([answer(words) for words in json.loads(sys.argv[1])]))
"""

TO = ["compress", "shop:ctr", "--out", "out", "--budget", "0.2"]
MISSING = [
    ([*TO, "--data", "none.npz"], "there is no data file 'none.npz'"),
    ([*TO, "--data", "there", "--checkpoint", "none.pt"], "there is no checkpoint 'none.pt'"),
    ([*TO, "--data", "there", "--statistics", "none"], "there is no file 'none'"),
    ([*TO, "--data", "there", "--evaluation", "none.npz"], "there is no data file 'none.npz'"),
    (["explain", "shop:ctr", "--checkpoint", "none.pt"], "there is no checkpoint 'none.pt'"),
    (["calibrate", "shop:ctr", "--data", "none.npz", "--out", "out"], "there is no data file 'none.npz'"),
    (["calibrate", "--merge", "there", "none.safetensors", "--out", "out"], "there is no file 'none.safetensors'"),
    (["sweep", "shop:ctr", "--data", "none.npz"], "there is no data file 'none.npz'"),
    (["apply", "shop:ctr", "--plan", "none", "--checkpoint", "there", "--out", "out"], "there is no file 'none'"),
    (["bench", "a=none.onnx"], "there is no file 'none.onnx'"),
    (["bench", "a=there", "--inputs", "none.npz"], "there is no data file 'none.npz'"),
    (["load", "a=none.onnx@cuda", "--latency-bound", "10"], "there is no file 'none.onnx'"),
    (["check", "there", "none.onnx"], "there is no ONNX file 'none.onnx'"),
]
OTHERS = [
    (["--help"], 0, "Makes trained"),
    (["--version"], 0, f"afm-fx {afm_fx.__version__}"),
    (["compres"], 2, "No such command 'compres'"),
    (["compress", "--config", "none.json"], 2, "is no JSON file"),
    *(([name, "--help"], 0, "Example") for name in GROUP.commands),
    *(([name, "--budgt", "0.2"], 2, "No such option: --budgt") for name in GROUP.commands),
]
"""What is asked, the exit code, and what is said."""


def answers(asked: list[list[str]], directory: Path) -> list[tuple[int, str, list[str]]]:
    """Exit code and output of command lines run one after the other in one process, and what was imported by then."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{ANSWERS}"
    words = [sys.executable, "-c", code, json.dumps(asked)]
    run = subprocess.run(words, cwd=directory, text=True, capture_output=True, check=True)  # noqa: S603 - our own code
    return [(code, output, heavy) for code, output, heavy in json.loads(run.stdout)]


def test_help_and_slips_are_answered_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    for (words, code, says), found in zip(OTHERS, answers([words for words, _, _ in OTHERS], tmp_path), strict=True):
        assert (found[0], says in found[1], found[2]) == (code, True, []), (words, found)


def test_a_missing_file_is_told_in_one_line_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    for (words, says), found in zip(MISSING, answers([words for words, _ in MISSING], tmp_path), strict=True):
        assert found == (2, f"error: {says}\n", []), words
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_importing_the_package_imports_nothing_heavy_and_work_does(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("")
    before, after = answers([["--version"], ["explain", "shop:ctr"]], tmp_path)
    assert before[2] == []
    assert (after[0], "torch" in after[2]) == (2, True)


def test_compressing_imports_no_exporter_before_it_exports() -> None:
    late = ("onnx", "onnx_ir", "onnxscript", "sympy", "torch._inductor", "torch.distributed.checkpoint")
    code = f"import sys, afm_fx; afm_fx.compress; print(*[name for name in {late} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)  # noqa: S603 - our own code
    assert run.stdout.split() == []


def test_there_are_few_commands_and_options() -> None:
    assert len(GROUP.commands) <= 10
    assert sum(len(command.params) for command in [GROUP, *GROUP.commands.values()]) <= 90


def panels(command: Any) -> set[str | None]:
    return {parameter.rich_help_panel for parameter in command.params if parameter.param_type_name == "option"}


@pytest.mark.parametrize("name", [name for name, command in GROUP.commands.items() if len(command.params) > 8])
def test_a_long_list_of_options_comes_in_panels(name: str) -> None:
    assert {"Data", "Output"} <= panels(GROUP.commands[name])
    assert name != "compress" or {"Policy: choose one", "Serving form"} <= panels(GROUP.commands[name])
