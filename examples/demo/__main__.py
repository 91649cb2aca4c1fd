"""``python -m examples.demo``: runs the demo and prints its table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_fx.commands import reported_errors
from examples.demo.model import Training
from examples.demo.run import DemoSettings, run_demo
from examples.generated_clicks import ClickGenerator


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Directory to write to.")] = Path("demo-output"),
    rows: Annotated[int, typer.Option(min=1000, help="Training rows to generate.")] = 300_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads, to train and to time.")] = 1,
    seed: Annotated[int, typer.Option(help="Of data and weights.")] = 2024,
    force: Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")] = False,
) -> None:
    """Train a small DeepFM on generated clicks, compress it, and compare both.

    Writes dense.onnx, low_rank.onnx, plan.safetensors, report.json and demo.json. Needs the extras deepctr and cpu
    (or gpu).
    """
    generator, training = ClickGenerator(seed=seed), Training(epochs=epochs, seed=seed)
    with reported_errors(debug=False):
        settings = DemoSettings(out, rows, generator=generator, training=training, threads=threads, force=force)
        result = run_demo(settings, typer.echo)
        typer.echo(result.table())
        typer.echo(result.footnotes())
        typer.echo(f"\nWritten to {out}/. Compress your own model: afm-fx compress --help")


if __name__ == "__main__":
    typer.run(demo)
