"""The command line and ``config.json`` ask for the compression that they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import afm_fx
from afm_fx.commands.cli import app
from afm_fx.commands.command_options import command_line, spelled
from afm_fx.commands.compress_config import CompressConfig
from afm_fx.errors import UserError
from afm_fx.planning.basis_kind import BasisKind
from afm_fx.program.input_kind import InputKind
from passes.serving.table_format import TableFormat


def config(data: str = "rows.npz", out: str = "out", **options: Any) -> CompressConfig:
    return CompressConfig(model="shop:ctr", data=Path(data), out=Path(out), **options)


CONFIGS = [
    (config(budget="0.2", report=Path("r.html")), afm_fx.Budget(0.2)),
    (
        config("my rows.npz", "o'ut", energy=0.9, checkpoint=Path("w.pt"), basis=BasisKind.AFM, pack=False),
        afm_fx.Energy(0.9),
    ),
    (
        config(
            ranks=("Linear=64", "mlp.2=8", "mlp.4=none"), columns=("ids", "dense"), batch_size=512, max_rows=9_000,
            inputs=InputKind.TYPED, buckets=(1, 16), tables=TableFormat.INT8, aoti=True, recover_epochs=3,
            labels=("click", "buy"), force=True,
        ),
        afm_fx.Fixed(None, 64, {"mlp.2": 8, "mlp.4": None}),
    ),
    (
        config(
            ranks=("full",), labels=("click",), report=Path("r.html"), evaluation=Path("eval.npz")
        ),
        afm_fx.FullRank(),
    ),
    (config(budget="bytes=0.3"), afm_fx.Budget(bytes=0.3)),
    (config(ranks=("Embedding=2",)), afm_fx.Fixed(2, None)),
    (
        config(auc_drop=0.001, labels=("click",), evaluation=Path("eval.npz")),
        afm_fx.Tolerance(auc_drop=0.001, evaluation=()),
    ),
    (config(logit_rmse=0.05, statistics=Path("s.safetensors")), afm_fx.Tolerance(logit_rmse=0.05)),
    (config(p50_us="250"), afm_fx.Latency(250.0, 1)),
    (config(p50_us="250@64"), afm_fx.Latency(250.0, 64)),
]  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[CompressConfig]:
    """What the command was asked for; it does nothing more."""
    given: list[CompressConfig] = []

    def ask(config: CompressConfig) -> None:
        given.append(config)
        raise UserError("asked")

    monkeypatch.setattr("afm_fx.commands.write_compressed", ask)
    return given


@pytest.mark.parametrize(("config", "policy"), CONFIGS, ids=lambda value: type(value).__name__)
def test_command_line_and_file_ask_for_the_same(config, policy, asked, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (config.data, config.checkpoint, config.evaluation, config.statistics):
        if path is not None:
            path.write_bytes(b"rows")
    Path("config.json").write_text(json.dumps(spelled(config)))
    for words in (["compress", *command_line(config)], ["compress", "--config", "config.json"]):
        assert "asked" in CliRunner().invoke(app, words).output
    assert asked == [config, config]
    assert asked[0].policy(evaluation=()) == policy


def test_what_the_command_line_says_goes_before_the_file(asked, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.npz").write_bytes(b"rows")
    Path("config.json").write_text(json.dumps(spelled(config(budget="0.2", buckets=(1, 16), pack=False))))
    CliRunner().invoke(app, ["compress", "--config", "config.json", "--budget", "0.1", "--out", "other"])
    assert asked == [config(out="other", budget="0.1", buckets=(1, 16), pack=False)]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON file"), ('{"bugdet": 0.2}', "no options of this command: ['bugdet']"), ("[1]", "no options")],
)
def test_a_file_that_holds_something_else_is_refused(content, message, asked, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(content)
    result = CliRunner().invoke(app, ["compress", "--config", "config.json"])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert asked == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "choose a policy"),
        ({"budget": "0.2", "energy": 0.9}, "choose one policy, not --budget and --energy"),
        ({"budget": "0.0"}, "Budget"),
        ({"budget": "half"}, "a budget is a share.*got 'half'"),
        ({"budget": "rows=0.2"}, "bytes=0.2 or flops=0.2; got 'rows=0.2'"),
        ({"budget": "bytes="}, "got 'bytes='"),
        ({"p50_us": "0"}, "p50_us above 0"),
        ({"p50_us": "200@"}, "got '200@'"),
        ({"p50_us": "fast@64"}, "got 'fast@64'"),
        ({"p50_us": "200@0"}, "whole number of batch_size"),
        ({"ranks": ("mlp.2",)}, "SITE=RANK"),
        ({"budget": "0.2", "labels": ("click",)}, "say how long with --recover-epochs"),
        ({"auc_drop": 0.1}, "needs --evaluation rows"),
        ({"budget": "0.2", "evaluation": Path("e.npz")}, "measured for --report or a limit"),
    ],
)
def test_what_does_not_belong_together_is_refused_on_construction(options, message) -> None:
    with pytest.raises(UserError, match=message):
        config(**options)
