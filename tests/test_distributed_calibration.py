"""Calibration by several processes under torchrun: the statistics of one, whoever reads what, and whoever dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import afm_fx
from tests import distributed_worker as worker

ROOT = Path(__file__).resolve().parents[1]

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
        close(found.activations[name].squares, spread.squares)
    for name, traffic in expected.traffic.items():
        assert torch.equal(found.traffic[name].counts, traffic.counts)
    assert found.traffic.keys() == expected.traffic.keys()
    assert found.sample is not None
    assert expected.sample is not None
    assert found.sample.rows == expected.sample.rows
    if same_draws:
        assert found.batches == expected.batches
        assert found.sensitivities.keys() == expected.sensitivities.keys() != set()
        for name, sensitivity in expected.sensitivities.items():
            assert found.sensitivities[name].rows == sensitivity.rows
            close(found.sensitivities[name].gradient, sensitivity.gradient)
            close(found.sensitivities[name].consumer, sensitivity.consumer)
        for name, column in expected.sample.columns.items():
            assert torch.equal(found.sample.columns[name], column)


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
    return afm_fx.calibrate(worker.program(), worker.batches_of(folder / "data"), **worker.OPTIONS)


@pytest.fixture(scope="module")
def three(folder: Path) -> Path:
    """The folder in which three processes left what they found."""
    done = torchrun(["tests.distributed_worker", str(folder)], folder, "--nproc-per-node", "3")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def load(path: Path) -> afm_fx.Statistics:
    return afm_fx.Statistics.load(path)


def test_three_processes_that_share_units_of_uneven_size_find_what_one_does(
    three: Path, alone: afm_fx.Statistics
) -> None:
    assert alone.rows == worker.ROWS
    assert alone.moments["second"].width > 64  # products in float32, which no grouping of rows may change
    for rank in range(3):
        assert_equal(load(three / f"units-{rank}.safetensors"), alone)


def test_processes_without_any_unit_take_part(three: Path, folder: Path) -> None:
    five = afm_fx.calibrate(worker.program(), worker.batches_of(folder / "data"), max_rows=5)
    for rank in range(3):
        found = load(three / f"few-{rank}.safetensors")
        assert (found.rows, found.batches) == (5, 1)
        close(found.moments["second"].scatter, five.moments["second"].scatter)


def test_own_parts_of_uneven_size_and_an_empty_one_add_up_to_the_whole(three: Path) -> None:
    whole = afm_fx.calibrate(
        worker.program().to(torch.float64), worker.tensors(0, worker.ROWS), sampled_rows=worker.OPTIONS["sampled_rows"]
    )
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
            "sampled_rows",
            "no rows at all: CalibrationError: there are no calibration batches",
        ]


def test_a_process_that_is_killed_costs_no_row_and_no_row_counts_twice(folder: Path, alone: afm_fx.Statistics) -> None:
    out, kept = folder / "killed.safetensors", folder / "kept"
    command = [
        "afm_fx", "calibrate", "tests.distributed_worker:clicks_that_die", "--data", str(folder / "data"),
        "--out", str(out), "--batch-size", str(worker.BATCH_SIZE), "--sensitivity-rows", "300", "--sampled-rows", "40",
        "--checkpoint-dir", str(kept), "--checkpoint-batches", "3",
    ]  # fmt: skip
    done = torchrun(command, folder, "--nproc-per-node", "2", "--max-restarts", "1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("1,500 rows in 50 batches, 6 sites, by 2 processes") == 1  # one process speaks
    undisturbed = afm_fx.calibrate(
        worker.program(),
        worker.batches_of(folder / "data"),
        checkpoint_dir=folder / "undisturbed",
        checkpoint_batches=3,
        **worker.OPTIONS,
    )
    assert_equal(load(out), undisturbed)
    read = [len((folder / f"read-{attempt}-1.txt").read_text().splitlines()) for attempt in (0, 1)]
    again = read[1] + len((folder / "read-1-0.txt").read_text().splitlines())
    assert read[0] == 9  # it was killed
    assert 0 < again < alone.batches  # and what was saved was not read again
    assert not kept.exists()
