"""The command line of ``benchmarks/floor.py``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from afm_fx.errors import UserError
from afm_fx.io import Machine, render_table, this_machine
from benchmarks.criteo_shape import CriteoShape
from benchmarks.exit_codes import exit_codes
from benchmarks.latency_contenders import COMPILED, CONTENDERS, THIS_PASS, LatencyModel
from benchmarks.node_profile import NodeTime, Peak, call_us, measure_peak, node_times
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command

COLUMNS = ("operator", "inputs", "us", "share", "multiply-adds", "gathered bytes", "floor us", "gap us")
BATCHES = (1, 256, 4096)

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Profile:
    """The nodes at one batch size.

    Attributes:
        batch_size: rows per call.
        peak: the core's rates, measured just before.
        call_us: median of a whole call without a profile.
        nodes: the nodes, in order.
    """

    batch_size: int
    peak: Peak
    call_us: float
    nodes: tuple[NodeTime, ...]

    @property
    def floor_us(self) -> float:
        """The floors of all nodes."""
        return sum(node.floor_us(self.peak) for node in self.nodes)


@app.command()
def floor(
    *,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Rows per call; may be given several times. [default: 1 256 4096]")
    ] = None,
    contender: Annotated[str, typer.Option(help="An ONNX contender of benchmarks/latency.py.")] = THIS_PASS,
    table_rows: Annotated[int, typer.Option(help="Rows of all 26 tables together.")] = 1_000_000,
    repeats: Annotated[int, typer.Option(help="Profiled calls at 4,096 rows; more at fewer.")] = 60,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Profile the packed low-rank DeepFM node by node in ONNX Runtime, beside what the core could do at best.

    One thread. Exit code 2: a mistake in the call.
    """
    with exit_codes():
        files = result_files(output_dir, "floor", force=force)
        _check_contender(contender)
        model = LatencyModel(CriteoShape(total_rows=table_rows))
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            path = model.entries(folder, [contender])[contender].competitor
            profiles = [_profile(model, Path(str(path)), folder, rows, repeats) for rows in batch_size or BATCHES]
    command, machine = shown_command("benchmarks/floor.py", sys.argv[1:]), this_machine()
    for profile in profiles:
        typer.echo(render_table(f"Batch {profile.batch_size:,}", COLUMNS, node_rows(profile), left=2))
        typer.echo(summary(profile))
    files.write(markdown(command, machine, contender, profiles), as_json(command, machine, contender, profiles))


def _check_contender(name: str) -> None:
    files = [each for each, (_, form) in CONTENDERS.items() if form not in COMPILED]
    if name not in files:
        raise UserError(f"'{name}' is no ONNX contender; there are: {'; '.join(files)}")


def _profile(model: LatencyModel, path: Path, folder: Path, rows: int, repeats: int) -> Profile:
    inputs = {"x": model.shape.batch(rows, model.seed + 2).numpy()}
    calls = min(2_000, max(repeats, repeats * 1024 // rows))
    peak = measure_peak()
    return Profile(
        rows, peak, call_us(path, inputs, repeats=calls), tuple(node_times(path, inputs, folder, repeats=calls))
    )


def node_rows(profile: Profile) -> list[tuple[str, ...]]:
    """One row of text per node, in the order of ``COLUMNS``."""
    total = sum(node.median_us for node in profile.nodes)
    rows = list[tuple[str, ...]]()
    for node in profile.nodes:
        least = node.floor_us(profile.peak)
        rows.append(
            (
                node.operator,
                ", ".join("x".join(map(str, shape)) or "scalar" for shape in node.shapes),
                f"{node.median_us:,.0f}",
                f"{node.median_us / total:.1%}",
                f"{node.multiply_adds:,}" if node.multiply_adds else "",
                f"{node.gathered_bytes:,}" if node.gathered_bytes else "",
                f"{least:,.1f}" if least else "",
                f"{node.median_us - least:,.0f}",
            )
        )
    return rows


def summary(profile: Profile) -> str:
    """Where the time goes, in words."""
    kernels, least = sum(node.median_us for node in profile.nodes), profile.floor_us
    worst = max(profile.nodes, key=lambda node: node.median_us - node.floor_us(profile.peak))
    return (
        f"Floor {least:,.1f} us at {2 * profile.peak.multiply_adds_per_us / 1e3:,.1f} GFLOP/s and "
        f"{profile.peak.bytes_per_us / 1e3:,.1f} GB/s; kernels {kernels:,.0f} us ({kernels / least:.1f} of the floor); "
        f"a call without a profile takes {profile.call_us:,.0f} us. Largest gap of one node: {worst.operator} of "
        f"{' and '.join('x'.join(map(str, shape)) for shape in worst.shapes[:2])}."
    )


def markdown(command: str, machine: Machine, contender: str, profiles: Sequence[Profile]) -> str:
    """The page that is committed."""
    parts = [
        f"# Nodes of a Criteo-shaped DeepFM ({contender}) against the arithmetic floor",
        f"`{command}`",
        machine.line(),
        "1 thread, ONNX Runtime. Times of nodes are medians of the runtime's own profile, which counts whole "
        "microseconds and adds its own; the call and the core's rates are medians of the thread's processor time. "
        "The floor of a product is its multiply-adds at the rate of a 1024 x 1024 x 1024 product, that of a gather its "
        "rows at the rate of one large copy; other nodes have none.",
    ]
    for profile in profiles:
        parts += [
            f"## Batch {profile.batch_size:,}",
            markdown_table(COLUMNS, node_rows(profile), left=2),
            summary(profile),
        ]
    return "\n\n".join(parts) + "\n"


def as_json(command: str, machine: Machine, contender: str, profiles: Sequence[Profile]) -> dict[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "machine": asdict(machine),
        "contender": contender,
        "profiles": [
            {**asdict(profile), "floor_us": profile.floor_us, "node_floors_us": _floors(profile)}
            for profile in profiles
        ],
    }


def _floors(profile: Profile) -> list[float]:
    return [node.floor_us(profile.peak) for node in profile.nodes]
