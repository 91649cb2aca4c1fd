"""The command ``afm-fx compress``: a model, its checkpoint and calibration rows become files to serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_fx.basis import BasisKind
from afm_fx.command_errors import reported_errors
from afm_fx.command_options import CheckpointOption, DebugOption, ForceOption, ModelArgument, names_of, whole_numbers
from afm_fx.compress_job import CompressJob, run_compress_job
from afm_fx.costs import CostKind
from afm_fx.errors import UserError
from afm_fx.onnx_buckets import check_batch_sizes
from afm_fx.policy_options import (
    AucDropOption,
    BudgetOfOption,
    BudgetOption,
    ConfidenceOption,
    EmbeddingRankOption,
    EnergyOption,
    FullRankOption,
    LinearRankOption,
    LogitRmseOption,
    LogLossRiseOption,
    P50BatchSizeOption,
    P50Option,
    PolicyOptions,
    RankOption,
)
from afm_fx.tolerance import CONFIDENCE, LabelledTolerance
from afm_fx.typed_inputs import InputKind
from passes.reduce_tables import TableFormat


def compress(
    model: ModelArgument,
    data: Annotated[
        Path,
        typer.Option(
            help="Calibration rows, no labels needed: .npz, .parquet or a folder of .parquet, with a column per input "
            "(others are left out), or .npy for a model with one tensor.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write to.", show_default=False)],
    checkpoint: CheckpointOption = None,
    budget: BudgetOption = None,
    budget_of: BudgetOfOption = CostKind.PARAMETERS,
    energy: EnergyOption = None,
    embedding_rank: EmbeddingRankOption = None,
    linear_rank: LinearRankOption = None,
    rank: RankOption = None,
    full_rank: FullRankOption = False,
    logit_rmse: LogitRmseOption = None,
    auc_drop: AucDropOption = None,
    logloss_rise: LogLossRiseOption = None,
    confidence: ConfidenceOption = CONFIDENCE,
    p50_us: P50Option = None,
    p50_batch_size: P50BatchSizeOption = 1,
    basis: Annotated[
        BasisKind, typer.Option(help="Where codes come from; measured: for each site the best of them.")
    ] = BasisKind.MEASURED,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of the data to use, in the model's order, comma-separated.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Calibration rows a batch.")] = 4096,
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="Calibration rows at most.", show_default="all of them")
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack/--no-pack", help="Pack the low-rank model for serving; its outputs stay the same.")
    ] = True,
    inputs: Annotated[
        InputKind,
        typer.Option(
            help="What the low-rank model takes: the model's own inputs, or ids and features apart (typed), where one "
            "float matrix carries both."
        ),
    ] = InputKind.ORIGINAL,
    buckets: Annotated[
        str | None,
        typer.Option(
            help="Also export the low-rank model once per batch size, every shape fixed, all files sharing one of "
            "weights: say 1,16,64.",
            show_default=False,
        ),
    ] = None,
    tables: Annotated[
        TableFormat | None,
        typer.Option(
            help="Store the low-rank model's tables in fewer bits; the error is measured and reported.",
            show_default="as they are",
        ),
    ] = None,
    aoti: Annotated[
        bool, typer.Option("--aoti", help="Also compile the low-rank model with AOTInductor (needs a C++ compiler).")
    ] = False,
    recover_epochs: Annotated[
        int,
        typer.Option(
            min=0, help="Train the low-rank model on the original's logits for so many passes over the data, say 3."
        ),
    ] = 0,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="With --recover-epochs or --evaluation: columns of labels from 0 to 1, one per task in the order of "
            "the outputs, comma-separated, to learn from and to measure on.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Also draw a page that tells all of it (needs the extra report).", show_default=False),
    ] = None,
    report_batch_sizes: Annotated[
        str, typer.Option(help="With --report: rows per call at which both files are timed for some seconds, or none.")
    ] = "1,64,1024",
    evaluation: Annotated[
        Path | None,
        typer.Option(
            help="With --labels: rows to measure AUC and LogLoss on, for --report or a limit.", show_default=False
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            help="What afm-fx calibrate wrote: calibration is left out, --data then only serves to measure errors on.",
            show_default=False,
        ),
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Compress a model and export it.

    Writes dense.onnx, low_rank.onnx, plan.safetensors and report.json (and low_rank.pt2 with --aoti, a page with
    --report), or nothing where anything goes wrong. All exports are checked against torch. Choose one policy: --budget,
    --logit-rmse, --auc-drop, --logloss-rise, --p50-us, --energy, --full-rank, or ranks.

    Example: afm-fx compress shop.models:ctr --checkpoint ctr.pt --data clicks.parquet --budget 0.2 --out compressed
    """
    with reported_errors(debug):
        options = PolicyOptions(
            budget, budget_of, energy, embedding_rank, linear_rank, tuple(rank or ()), full_rank,
            logit_rmse, auc_drop, logloss_rise, confidence, p50_us, p50_batch_size,
        )  # fmt: skip
        policy = options.policy()
        sizes = () if buckets is None else check_batch_sizes(whole_numbers(buckets))
        names, tasks = names_of(columns), tuple(names_of(labels) or ())
        if tasks and not recover_epochs and evaluation is None:
            raise UserError(
                "--labels are for recovery, say how long with --recover-epochs 3, or to measure on --evaluation rows"
            )
        judged = isinstance(policy, LabelledTolerance)
        if isinstance(policy, LabelledTolerance) and not (tasks and evaluation is not None):
            raise UserError(f"a limit on {policy.quantity} needs --evaluation rows, and --labels to name their columns")
        if evaluation is not None and not (tasks and (judged or report is not None)):
            raise UserError("--evaluation is measured for --report or a limit, on the columns that --labels names")
        timed = () if report is None or report_batch_sizes == "none" else tuple(whole_numbers(report_batch_sizes))
        job = CompressJob(
            model, data, out, policy, checkpoint, names, batch_size, max_rows, basis.value, force, pack, inputs, sizes,
            None if tables is None else tables.value, aoti, recover_epochs, tasks, report, timed, evaluation,
            statistics,
        )  # fmt: skip
        outcome = run_compress_job(job)
        typer.echo(outcome.compressed.plan.table())
        typer.echo(outcome.compressed.report.table())
        if outcome.recovery is not None:
            typer.echo(outcome.recovery.table())
        if outcome.compressed.packing is not None:
            typer.echo(outcome.compressed.packing.table())
        if outcome.precision is not None:
            typer.echo(outcome.precision.table())
        dense, low_rank = (export.max_abs_difference for export in outcome.exports)
        typer.echo(f"Largest difference between ONNX Runtime and torch: dense {dense:.1e}, low-rank {low_rank:.1e}")
        if outcome.package is not None:
            typer.echo(
                f"Compiled low_rank.pt2 in {outcome.package.compile_seconds:.0f} s; largest difference between it and "
                f"torch: {outcome.package.max_abs_difference:.1e}"
            )
        if outcome.buckets is not None:
            typer.echo(outcome.buckets.table())
        typer.echo(f"Written to {out}/: {', '.join(name for name in job.outputs if (out / name).exists())}")
        if report is not None:
            typer.echo(f"Report: {report}")
