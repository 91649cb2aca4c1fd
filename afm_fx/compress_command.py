"""The command ``afm-fx compress``: a model, its checkpoint and calibration rows become files to serve."""

from __future__ import annotations

import typer

from afm_fx.compress_config import CompressConfig
from afm_fx.compress_files import compress_files, outputs_of


def compress(config: CompressConfig) -> None:
    """Compress a model and export it.

    Writes dense.onnx, low_rank.onnx, plan.safetensors, report.json and config.json (and low_rank.pt2 with --aoti, a
    page with --report), or nothing where anything goes wrong. All exports are checked against torch. Choose one policy:
    --budget, --logit-rmse, --auc-drop, --logloss-rise, --p50-us, --energy, --full-rank, or ranks.

    Example: afm-fx compress shop.models:ctr --checkpoint ctr.pt --data clicks.parquet --budget 0.2 --out compressed
    """
    done = compress_files(config)
    compressed = done.compressed
    reports = (compressed.plan, compressed.report, done.recovery, compressed.packing, done.precision)
    for report in reports:
        if report is not None:
            typer.echo(report.table())
    dense, low_rank = (export.max_abs_difference for export in done.exports)
    typer.echo(f"Largest difference between ONNX Runtime and torch: dense {dense:.1e}, low-rank {low_rank:.1e}")
    if done.package is not None:
        typer.echo(
            f"Compiled low_rank.pt2 in {done.package.seconds:.0f} s; largest difference between it and "
            f"torch: {done.package.max_abs_difference:.1e}"
        )
    if done.buckets is not None:
        typer.echo(done.buckets.table())
    written = [name for name in outputs_of(config) if (config.out / name).exists()]
    typer.echo(f"Written to {config.out}/: {', '.join(written)}")
    if config.report is not None:
        typer.echo(f"Report: {config.report}")
