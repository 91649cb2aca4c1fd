"""A DeepFM in Criteo's shape under load: the highest rate it holds, and that half of it holds for long."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from afm_fx.measure import shown_us
from benchmarks.common import options
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.common.results import RESULTS, Part, Table, result_files
from benchmarks.serving.contenders import DENSE, THIS_PASS, LatencyModel
from benchmarks.serving.load_proof import LoadProof, ProofSettings, memory_growth, prove, run_apart

TRAFFIC_ROWS = 65_536
SPEED_COLUMNS = ("", "highest QPS within the bound", "rows/s", "p50 there, us", "p99 there, us")
PROOF_COLUMNS = (
    "", "QPS", "requests", "lost", "p50 us", "p99 us", "p99.9 us", "memory MB", "grew by MB", "LoadGen", "holds",
)  # fmt: skip


def serving_load(
    *,
    batch_size: Annotated[int, typer.Option(help="Rows of a request.")] = 64,
    latency_bound: Annotated[float, typer.Option(metavar="MS", help="Bound of p99 in milliseconds.")] = 10.0,
    seconds: Annotated[float, typer.Option(help="Duration of a run that measures.")] = 10.0,
    half_seconds: Annotated[float, typer.Option(help="Duration of the run at half the highest rate.")] = 60.0,
    threads: Annotated[int, typer.Option(help="Threads within an operator.")] = 1,
    table_rows: options.TableRows = 1_000_000,
    work_dir: options.WorkDir = None,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Put a Criteo-shaped DeepFM, dense and low-rank, under load with MLPerf LoadGen.

    Finds the highest rate of random arrivals whose 99th percentile stays within the bound, and then holds half of it
    for a minute: no request may be lost, p99 must stay within the bound, memory must not grow. Exit code 1: it does
    not hold.
    """
    settings = ProofSettings(batch_size, latency_bound, seconds, half_seconds, threads)
    files = result_files(output_dir, "serving_load", force=force)
    model = LatencyModel(CriteoShape(total_rows=table_rows))
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        place = Path(folder)
        entries = model.entries(place, (DENSE, THIS_PASS), threads)
        rows = place / "traffic.npy"
        np.save(rows, model.shape.batch(TRAFFIC_ROWS, model.seed + 2).numpy())
        exported = {name: Path(str(entry.competitor)) for name, entry in entries.items()}
        before = os.getloadavg()[0]
        proofs = prove(exported, rows, place / "logs", settings, run_apart)
    contenders = {
        name: {"holds": proof.holds, **vars(proof), "half_summary": proof.half_summary.splitlines()}
        for name, proof in proofs.items()
    }
    content = {"settings": settings, "load_average_before": before, "contenders": contenders}
    files.write("A Criteo-shaped DeepFM under load", parts(settings, proofs, before), content)
    if not all(proof.holds for proof in proofs.values()):
        raise typer.Exit(1)


def speed_rows(proofs: Mapping[str, LoadProof]) -> list[tuple[str, ...]]:
    """How fast each server is, under ``SPEED_COLUMNS``."""
    rows: list[tuple[str, ...]] = []
    for name, proof in proofs.items():
        highest = proof.highest.runs[0]
        rows.append((
            name, f"{highest.qps:,.0f}", f"{highest.qps * proof.highest.batch_size:,.0f}",
            shown_us(highest.latencies.p50_us), shown_us(highest.latencies.p99_us),
        ))  # fmt: skip
    return rows


def proof_rows(proofs: Mapping[str, LoadProof]) -> list[tuple[str, ...]]:
    """How each server held half its highest rate, under ``PROOF_COLUMNS``."""
    rows = []
    for name, proof in proofs.items():
        run = proof.half.runs[0]
        growth, latencies = memory_growth(proof.resident), run.latencies
        grew = "not known" if growth is None else f"{growth / 1e6:.2f}"
        memory = "not known" if not proof.resident else f"{proof.resident[-1] / 1e6:,.0f}"
        rows.append((
            name, f"{run.qps:,.0f}", f"{run.queries:,}", str(proof.lost),
            *(shown_us(value) for value in (latencies.p50_us, latencies.p99_us, latencies.p999_us)), memory, grew,
            "INVALID" if run.invalid else "VALID", "yes" if proof.holds else "NO",
        ))  # fmt: skip
    return rows


def parts(settings: ProofSettings, proofs: Mapping[str, LoadProof], load_before: float) -> list[Part]:
    """The page."""
    some = next(iter(proofs.values())).half
    busy = (
        f"Before the runs, {load_before:.1f} other processes wanted the {some.machine.cores} cores on average"
        + (": the machine was busy, and every rate here is lower for it." if load_before > 0.5 else ".")
    )  # fmt: skip
    return [
        f"MLPerf LoadGen's numbers. A request has {settings.batch_size} rows and is one of {some.requests} that lie "
        f"prepared; {settings.threads} thread{'s' if settings.threads > 1 else ''} within an operator, in ONNX "
        "Runtime. With random arrivals (Poisson) one worker thread answers, beside LoadGen's issuing thread. Each "
        "server has a process of its own, one after the other.",
        busy,
        f"The highest rate is one at which p99 stays within {settings.latency_bound_ms:g} ms in a run of "
        f"{settings.seconds:g} s that LoadGen calls valid.",
        Table(SPEED_COLUMNS, speed_rows(proofs)),
        f"## Half the highest rate, for {settings.half_seconds:g} s",
        "It holds where no request is lost, p99 stays within the bound, LoadGen calls the run valid, and the median "
        "resident memory of the last third of the run exceeds that of the middle third by no more than 1 %.",
        Table(PROOF_COLUMNS, proof_rows(proofs)),
        "`serving_load.json` holds memory over time and LoadGen's own summary of the long runs.",
    ]
