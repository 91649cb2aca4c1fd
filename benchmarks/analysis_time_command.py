"""The command line of ``benchmarks/analysis_time.py``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from afm_fx.io import Machine, render_table, this_machine
from benchmarks.analysis_cost import STAGES, AnalysisCost, analysis_cost, growth
from benchmarks.criteo_shape import CriteoShape
from benchmarks.exit_codes import exit_codes
from benchmarks.many_towers import NODES_PER_TOWER, ManyTowers, TowerShape
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command

COLUMNS = ("model", "nodes", "tables", "sites", *(f"{stage} s" for stage in STAGES), "analysis ms / node", "export s")
NODES = (1_000, 2_000, 5_000, 10_000, 20_000)
DEEPFM = "DeepFM, 26 tables"

app = typer.Typer(add_completion=False)


@app.command()
def analysis_time(
    *,
    nodes: Annotated[
        list[int] | None,
        typer.Option(help=f"Graph sizes; may be given several times. [default: {' '.join(map(str, NODES))}]"),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed repetitions, after one untimed.")] = 3,
    deepfm: Annotated[bool, typer.Option(help="Measure a DeepFM of 26 tables as well (needs deepctr-torch).")] = True,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Measure how long analysis and rewrite take, and how that grows with the graph.

    Graphs are exported from models of many towers (tables, gates, pairwise products, cross layers, sequences, MLPs);
    each is exported once. Times are medians on one thread, all checks of the passes included. Exit code 2: a mistake in
    the call.
    """
    torch.set_num_threads(1)
    with exit_codes():
        files = result_files(output_dir, "analysis_time", force=force)
    before, costs = os.getloadavg(), []
    if deepfm:
        shape = CriteoShape(total_rows=10_000)
        costs.append(analysis_cost(DEEPFM, shape.deepfm(0), [shape.batch(4, 0)], repeats))
    grown = []
    for wanted in nodes or NODES:
        model = ManyTowers(max(1, round(wanted / NODES_PER_TOWER)), TowerShape())
        grown.append(analysis_cost(f"{model.count} towers", model, model.batch(3), repeats))
        typer.echo(f"{grown[-1].nodes:,} nodes: analysis {grown[-1].wall_seconds[1]:.2f} s", err=True)
    command, machine = shown_command("benchmarks/analysis_time.py", sys.argv[1:]), this_machine()
    load = (
        f"1 thread, medians of {repeats}; load average of the machine {before[0]:.1f} at the start, "
        f"{os.getloadavg()[0]:.1f} at the end"
    )
    typer.echo(render_table("Wall-clock seconds", COLUMNS, rows([*costs, *grown])))
    typer.echo(f"{machine.line()}; {load}")
    files.write(markdown(command, machine, load, costs, grown), as_json(command, machine, load, costs, grown))


def rows(costs: Sequence[AnalysisCost], *, processor: bool = False) -> list[tuple[str, ...]]:
    """One row of text per graph, in the order of ``COLUMNS``: wall-clock seconds, or the processor's."""
    return [
        (
            cost.model,
            f"{cost.nodes:,}",
            f"{cost.tables:,}",
            f"{cost.sites:,}",
            *(f"{seconds:.2f}" for seconds in (cost.processor_seconds if processor else cost.wall_seconds)),
            f"{1e3 * (cost.processor_seconds if processor else cost.wall_seconds)[1] / cost.nodes:.2f}",
            f"{cost.capture_seconds:.0f}",
        )
        for cost in costs
    ]


def growth_line(grown: Sequence[AnalysisCost]) -> str:
    """How every stage grows, in words."""
    if len(grown) < 2:
        return "One size: nothing to say about growth."
    exponents = ", ".join(f"{stage} {growth(grown, place):.2f}" for place, stage in enumerate(STAGES))
    return f"Processor seconds grow as nodes to the power of: {exponents} (1 is linear)."


def markdown(command: str, machine: Machine, load: str, costs: list[AnalysisCost], grown: list[AnalysisCost]) -> str:
    """The page that is committed."""
    every = [*costs, *grown]
    parts = [
        "# How long analysis and rewrite take",
        f"`{command}`",
        f"{machine.line()}; {load}",
        "`torch.export` (last column) runs once and is not part of the passes. A tower has 26 tables, a gate per "
        "field, FM's pairwise term, a dot interaction, two cross layers, a masked sequence and an MLP.",
        "## Wall-clock seconds",
        markdown_table(COLUMNS, rows(every)),
        "## Processor seconds",
        markdown_table(COLUMNS, rows(every, processor=True)),
        growth_line(grown),
    ]
    return "\n\n".join(parts) + "\n"


def as_json(
    command: str, machine: Machine, load: str, costs: list[AnalysisCost], grown: list[AnalysisCost]
) -> dict[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "machine": asdict(machine),
        "conditions": load,
        "stages": STAGES,
        "graphs": [asdict(cost) for cost in (*costs, *grown)],
        "growth": {stage: growth(grown, place) for place, stage in enumerate(STAGES)} if len(grown) > 1 else {},
    }
