"""Calibration by several processes under torchrun: the statistics of one, whoever reads what, and whoever dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import afm_fx
from afm_fx.calibration.statistics import missing_shares
from afm_fx.commands.cli import app
from tests.calibration import distributed_worker as worker

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.xdist_group("distributed"),
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]


def torchrun(arguments: Sequence[str], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        "--monitor-interval", "0.1", *options, "-m", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "TEST_FOLDER": str(folder), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":  # gloo would look for an interface by the machine's name, which may have no address
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return subprocess.run(  # noqa: S603 - our own modules
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400
    )


def assert_equal(found: afm_fx.Statistics, expected: afm_fx.Statistics, *, same_draws: bool = True) -> None:
    """Everything to 1e-10 of its own size, and numbers of rows exactly."""
    assert found.rows == expected.rows
    for name, moments in expected.moments.items():
        assert found.moments[name].count == moments.count
        close(found.moments[name].mean, moments.mean)
        close(found.moments[name].scatter, moments.scatter)
    assert found.moments.keys() == expected.moments.keys()
    for name, spread in expected.activations.items():
        assert found.activations[name].count == spread.count
        close(found.activations[name].mean, spread.mean)
        close(found.activations[name].scatter, spread.scatter)
    for name, traffic in expected.traffic.items():
        assert torch.equal(found.traffic[name].counts, traffic.counts)
    assert found.traffic.keys() == expected.traffic.keys()
    if same_draws:
        assert found.batches == expected.batches
        assert found.sensitivities.keys() == expected.sensitivities.keys() != set()
        for name, sensitivity in expected.sensitivities.items():
            assert found.sensitivities[name].rows == sensitivity.rows
            close(found.sensitivities[name].gradient, sensitivity.gradient)
            close(found.sensitivities[name].consumer, sensitivity.consumer)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("distributed")
    worker.write_folder(folder / "data")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> afm_fx.Statistics:
    """What one process finds."""
    return afm_fx.calibrate(worker.program().to(torch.float64), worker.batches_of(folder / "data"), **worker.OPTIONS)


@pytest.fixture(scope="module")
def three(folder: Path) -> Path:
    """The folder in which three processes left what they found."""
    done = torchrun(["tests.calibration.distributed_worker", str(folder)], folder, "--nproc-per-node", "3")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def load(path: Path) -> afm_fx.Statistics:
    return afm_fx.Statistics.load(path)


def test_sums_over_processes_are_those_of_all_rows_whatever_the_order_of_names(three: Path) -> None:
    for rank in range(3):  # the processes have compared
        told = (three / f"summed-{rank}.txt").read_text()
        assert told.startswith("7 process 1 of 3 calibrates something else than process 0: they differ in the model")


def test_three_processes_that_share_row_groups_of_uneven_size_find_what_one_does(
    three: Path, alone: afm_fx.Statistics
) -> None:
    assert alone.rows == worker.ROWS
    for rank in range(3):
        assert_equal(load(three / f"shares-{rank}.safetensors"), alone)


def test_a_share_that_processes_share_adds_to_the_others(three: Path, folder: Path, alone: afm_fx.Statistics) -> None:
    program, batches = worker.program().to(torch.float64), worker.batches_of(folder / "data")
    half = load(three / "half-0.safetensors")
    assert half.rows < worker.ROWS
    assert [(share.number, share.of) for share in missing_shares(half.shares)] == [(0, 6), (1, 6), (2, 6)]
    rest = [afm_fx.calibrate(program, batches, share=(index, 6), **worker.OPTIONS) for index in (2, 0, 1)]
    assert_equal(rest[0] + half + rest[1] + rest[2], alone)


def test_processes_without_any_batch_take_part(three: Path, folder: Path) -> None:
    five = afm_fx.calibrate(worker.program(), worker.batches_of(folder / "data"), max_rows=5)
    for rank in range(3):
        found = load(three / f"few-{rank}.safetensors")
        assert (found.rows, found.batches) == (5, 1)
        close(found.moments["second"].scatter, five.moments["second"].scatter)


def test_own_parts_of_uneven_size_and_an_empty_one_add_up_to_the_whole(three: Path) -> None:
    whole = afm_fx.calibrate(worker.program().to(torch.float64), worker.tensors(0, worker.ROWS))
    for rank in range(3):
        assert_equal(load(three / f"parts-{rank}.safetensors"), whole, same_draws=False)


def test_numbers_of_rows_that_are_asked_for_are_those_of_all_processes(three: Path) -> None:
    for rank in range(3):
        assert (three / f"told-{rank}.txt").read_text().splitlines()[0] == "cut 200 96"


def test_a_failing_process_makes_all_fail_with_its_number_and_reason(three: Path) -> None:
    told = [(three / f"told-{rank}.txt").read_text().splitlines()[1:] for rank in range(3)]
    for rank in (0, 2):
        assert told[rank][0].startswith(
            f"a bad batch: OtherProcessError: process 1 of 3 failed, so process {rank} stops too: batch 0, row 0: id 99"
        )
    assert told[1][0].startswith("a bad batch: BatchError: batch 0, row 0: id 99")
    for each in told:
        assert each[1:] == [
            "other options: CalibrationError: process 1 of 3 calibrates something else than process 0: they differ in "
            "sensitivity_rows",
            "no rows at all: CalibrationError: there are no calibration batches",
        ]


def test_processes_recover_together_to_one_and_the_same_program_and_that_of_one_process(three: Path) -> None:
    states, errors = zip(*(torch.load(three / f"recovered-{rank}.pt") for rank in range(3)), strict=True)
    alone = worker.recovered()
    start = worker.low_rank().graph_module.state_dict()
    for name, value in alone.program.graph_module.state_dict().items():
        assert all(torch.equal(state[name], states[0][name]) for state in states)
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(states[0][name], value) for name, value in start.items() if name in states[0])
    assert errors[0] == errors[1] == errors[2]
    assert errors[0] == pytest.approx([epoch.logit_rmse for epoch in alone.report.epochs], rel=1e-4)
    assert errors[0][-1] < errors[0][0]


def test_a_process_that_fails_in_the_middle_of_an_epoch_stops_all(three: Path) -> None:
    told = [(three / f"failed-{rank}.txt").read_text() for rank in range(3)]
    reason = "batch 3, rows 16 to 24: row 4: id 99 of input 'ids', column 1 is outside"
    assert told[2].startswith(f"BatchError: {reason}")
    for rank in (0, 1):
        assert told[rank].startswith(f"OtherProcessError: process 2 of 3 failed, so process {rank} stops too: {reason}")


def test_the_command_shares_the_data_and_starts_again_where_a_process_is_killed(
    folder: Path, alone: afm_fx.Statistics
) -> None:
    out = folder / "killed.safetensors"
    command = [
        "afm_fx", "calibrate", "tests.calibration.distributed_worker:clicks_that_die", "--data", str(folder / "data"),
        "--out", str(out), "--batch-size", str(worker.BATCH_SIZE),
    ]  # fmt: skip
    done = torchrun(command, folder, "--nproc-per-node", "2", "--max-restarts", "1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("1,500 rows in 47 batches, 6 sites, by 2 processes") == 1  # one process speaks
    assert load(out).rows == alone.rows
    for name, moments in alone.moments.items():  # the command's program is float32
        torch.testing.assert_close(load(out).moments[name].covariance, moments.covariance, rtol=1e-4, atol=1e-5)


def test_shares_by_the_command_line_merge_to_the_whole(folder: Path) -> None:
    common = ["tests.calibration.distributed_worker:clicks", "--data", str(folder / "data"), "--batch-size", "32"]
    files = [str(folder / f"share-{index}.safetensors") for index in range(3)]
    for index, file in enumerate(files):
        run = CliRunner().invoke(app, ["calibrate", *common, "--share", f"{index}/3", "--out", file])
        assert run.exit_code == 0, run.output
    out = folder / "merged.safetensors"
    merged = CliRunner().invoke(app, ["calibrate", "--merge", files[2], files[0], "--out", str(out)])
    assert "Missing: 1/3 of data (1,500 rows in batches of 32, " in merged.output
    merged = CliRunner().invoke(app, ["calibrate", "--merge", str(out), files[1], "--out", str(out), "--force"])
    assert merged.output.startswith("1,500 rows in 47 batches, 6 sites, from 2 files")
    assert "Missing" not in merged.output
    assert load(out).moments["second"].count == worker.ROWS
    twice = CliRunner().invoke(app, ["calibrate", "--merge", str(out), files[1], "--out", str(out), "--force"])
    assert (twice.exit_code, "its rows would count twice" in twice.output) == (2, True)
    for wrong in (["--share", "3"], ["--share", "3/3"]):
        assert CliRunner().invoke(app, ["calibrate", *common, *wrong, "--out", "new"]).exit_code == 2
    assert (
        CliRunner().invoke(app, ["calibrate", "tests.calibration.distributed_worker:clicks", "--out", "new"]).exit_code
        == 2
    )
