"""The nodes of a packed low-rank DeepFM in ONNX Runtime, beside what the core could do at best."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from afm_fx.errors import UserError
from benchmarks.common import options
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.common.results import RESULTS, Part, Table, result_files
from benchmarks.serving.contenders import COMPILED, CONTENDERS, THIS_PASS, LatencyModel
from benchmarks.serving.node_profile import NodeTime, Peak, call_us, measure_peak, node_times

BATCHES = [1, 256, 4096]
COLUMNS = ("operator", "inputs", "us", "share", "multiply-adds", "gathered bytes", "floor us", "gap us")


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


def floor(
    *,
    batch_size: options.BatchSizes = BATCHES,
    contender: Annotated[str, typer.Option(help="An ONNX contender of the benchmark latency.")] = THIS_PASS,
    table_rows: options.TableRows = 1_000_000,
    repeats: Annotated[int, typer.Option(help="Profiled calls at 4,096 rows; more at fewer.")] = 60,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Profile the packed low-rank DeepFM node by node in ONNX Runtime, beside what the core could do at best."""
    files = result_files(output_dir, "floor", force=force)
    _check_contender(contender)
    model = LatencyModel(CriteoShape(total_rows=table_rows))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        path = model.entries(folder, [contender])[contender].competitor
        profiles = [_profile(model, Path(str(path)), folder, rows, repeats) for rows in batch_size]
    parts: list[Part] = [
        "1 thread, ONNX Runtime. Times of nodes are medians of the runtime's own profile, which counts whole "
        "microseconds and adds its own; the call and the core's rates are medians of the thread's processor time. "
        "The floor of a product is its multiply-adds at the rate of a 1024 x 1024 x 1024 product, that of a gather its "
        "rows at the rate of one large copy; other nodes have none.",
    ]
    for each in profiles:
        parts += [f"## Batch {each.batch_size:,}", Table(COLUMNS, node_rows(each), left=2), summary(each)]
    title = f"Nodes of a Criteo-shaped DeepFM ({contender}) against the arithmetic floor"
    files.write(title, parts, {"contender": contender, "profiles": profiles})


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
    """One row of text per node, under ``COLUMNS``."""
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
