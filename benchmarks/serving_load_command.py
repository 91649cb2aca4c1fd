"""The command line of ``benchmarks/serving_load.py``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from afm_fx.measure import shown_us
from benchmarks.criteo_shape import CriteoShape
from benchmarks.exit_codes import exit_codes
from benchmarks.latency_contenders import DENSE, THIS_PASS, LatencyModel
from benchmarks.load_proof import LoadProof, ProofSettings, memory_growth, prove, run_apart
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command

TRAFFIC_ROWS = 65_536
SPEED_COLUMNS = ("", "highest QPS within the bound", "rows/s", "p50 there, us", "p99 there, us")
PROOF_COLUMNS = (
    "", "QPS", "requests", "lost", "p50 us", "p99 us", "p99.9 us", "memory MB", "grew by MB", "LoadGen", "holds",
)  # fmt: skip

app = typer.Typer(add_completion=False)


@app.command()
def serving_load(
    *,
    batch_size: Annotated[int, typer.Option(help="Rows of a request.")] = 64,
    latency_bound: Annotated[float, typer.Option(metavar="MS", help="Bound of p99 in milliseconds.")] = 10.0,
    seconds: Annotated[float, typer.Option(help="Duration of a run that measures.")] = 10.0,
    half_seconds: Annotated[float, typer.Option(help="Duration of the run at half the highest rate.")] = 60.0,
    threads: Annotated[int, typer.Option(help="Threads within an operator.")] = 1,
    table_rows: Annotated[int, typer.Option(help="Rows of all 26 tables together.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Of weights and traffic.")] = 0,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where models and LoadGen's logs are kept.", show_default="a temporary one")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Put a Criteo-shaped DeepFM, dense and low-rank, under load with MLPerf LoadGen.

    Finds the highest rate of random arrivals whose 99th percentile stays within the bound, and then holds half of it
    for a minute: no request may be lost, p99 must stay within the bound, memory must not grow. Exit code 1: it does
    not hold.
    """
    settings = ProofSettings(batch_size, latency_bound, seconds, half_seconds, threads)
    with exit_codes():
        files = result_files(output_dir, "serving_load", force=force)
        model = LatencyModel(CriteoShape(total_rows=table_rows), seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            place = work_dir or Path(folder)
            place.mkdir(parents=True, exist_ok=True)
            entries = model.entries(place, (DENSE, THIS_PASS), threads)
            rows = place / "traffic.npy"
            np.save(rows, model.shape.batch(TRAFFIC_ROWS, seed + 2).numpy())
            exported = {name: Path(str(entry.competitor)) for name, entry in entries.items()}
            before = os.getloadavg()[0]
            proofs = prove(exported, rows, place / "logs", settings, run_apart)
    command = shown_command("benchmarks/serving_load.py", sys.argv[1:])
    page = markdown(command, settings, proofs, before)
    typer.echo(page)
    files.write(page, as_json(command, settings, proofs, before))
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


def markdown(command: str, settings: ProofSettings, proofs: Mapping[str, LoadProof], load_before: float) -> str:
    """The page that is committed."""
    some = next(iter(proofs.values())).half
    busy = (
        f"Before the runs, {load_before:.1f} other processes wanted the {some.machine.cores} cores on average"
        + (": the machine was busy, and every rate here is lower for it." if load_before > 0.5 else ".")
    )  # fmt: skip
    parts = [
        "# A Criteo-shaped DeepFM under load",
        f"`{command}`",
        f"MLPerf LoadGen's numbers. A request has {settings.batch_size} rows and is one of {some.requests} that lie "
        f"prepared; {settings.threads} thread{'s' if settings.threads > 1 else ''} within an operator, in ONNX "
        "Runtime. With random arrivals (Poisson) one worker thread answers, beside LoadGen's issuing thread. Each "
        "server has a process of its own, one after the other.",
        f"{some.machine.line()}.  \n{busy}",
        f"The highest rate is one at which p99 stays within {settings.latency_bound_ms:g} ms in a run of "
        f"{settings.seconds:g} s that LoadGen calls valid.",
        markdown_table(SPEED_COLUMNS, speed_rows(proofs)),
        f"## Half the highest rate, for {settings.half_seconds:g} s",
        "It holds where no request is lost, p99 stays within the bound, LoadGen calls the run valid, and the median "
        "resident memory of the last third of the run exceeds that of the middle third by no more than 1 %.",
        markdown_table(PROOF_COLUMNS, proof_rows(proofs)),
        "`serving_load.json` holds memory over time and LoadGen's own summary of the long runs.",
    ]
    return "\n\n".join(parts) + "\n"


def as_json(
    command: str, settings: ProofSettings, proofs: Mapping[str, LoadProof], load_before: float
) -> dict[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "settings": dataclasses.asdict(settings),
        "load_average_before": load_before,
        "contenders": {
            name: {
                "holds": proof.holds,
                "highest": json.loads(proof.highest.to_json()),
                "half": json.loads(proof.half.to_json()),
                "resident": list(proof.resident),
                "half_summary": proof.half_summary.splitlines(),
            }
            for name, proof in proofs.items()
        },
    }
