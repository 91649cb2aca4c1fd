"""The command line ``afm-fx``: ``demo``, ``explain``, ``compress``, ``sweep``, ``refresh``, ``check``, ``bench`` and
``load``.

Exit codes: 0 done, 1 the work failed, 2 the user's input is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_fx import __version__
from afm_fx.basis import BasisKind
from afm_fx.bench_command import bench
from afm_fx.capture import capture
from afm_fx.check_command import check
from afm_fx.command_errors import reported_errors
from afm_fx.command_options import CheckpointOption, DebugOption, ForceOption, ModelArgument, whole_numbers
from afm_fx.compress_job import CompressJob, run_compress_job
from afm_fx.demo import DemoSettings, run_demo
from afm_fx.demo_model import Training
from afm_fx.errors import UserError
from afm_fx.explanation import explain as explain_program
from afm_fx.load_command import load
from afm_fx.onnx_buckets import check_batch_sizes
from afm_fx.output_directory import refuse_existing_file
from afm_fx.policies import Budget, Energy, Fixed, FullRank, Policy
from afm_fx.refresh_command import refresh
from afm_fx.sweep_command import sweep
from afm_fx.synthetic import ClickGenerator
from afm_fx.typed_inputs import InputKind
from afm_fx.user_model import build_model
from passes.reduce_tables import TableFormat

app = typer.Typer(
    name="afm-fx",
    help="Makes trained click-through-rate models low-rank, proves the rewrite, and exports them to ONNX.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 the input is wrong.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    app()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"afm-fx {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory to write to.")] = Path("demo-output"),
    rows: Annotated[int, typer.Option(min=1000, help="Training rows to generate.")] = 300_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads, to train and to time.")] = 1,
    seed: Annotated[int, typer.Option(help="Of data and weights.")] = 2024,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a small DeepFM on generated clicks, compress it, and compare both.

    Writes dense.onnx, low_rank.onnx, plan.safetensors, report.json and demo.json. Needs the extras deepctr and cpu
    (or gpu).
    """
    with reported_errors(debug):
        settings = DemoSettings(
            out=out,
            rows=rows,
            generator=ClickGenerator(seed=seed),
            training=Training(epochs=epochs, seed=seed),
            threads=threads,
            force=force,
        )
        result = run_demo(settings, typer.echo)
        typer.echo(result.table())
        typer.echo(result.footnotes())
        typer.echo(f"\nWritten to {out}/. Compress your own model: afm-fx compress --help")


@app.command()
def explain(
    model: ModelArgument,
    checkpoint: CheckpointOption = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the explanation here as well.", show_default=False)
    ] = None,
    html_out: Annotated[
        Path | None,
        typer.Option("--html", help="Draw it into this page (needs the extra report).", show_default=False),
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Show every place of a model that can be made low-rank, with a verdict and its reason per use.

    Needs no data and changes nothing.

    Example: afm-fx explain shop.models:ctr --checkpoint ctr.pt --html explanation.html
    """
    with reported_errors(debug):
        for path in (json_out, html_out):
            if path is not None:
                refuse_existing_file(path, force=force)
        program = capture(*build_model(model, checkpoint))
        explanation = explain_program(program)
        typer.echo(f"{model}: {program.parameter_count():,} parameters, captured by {program.front_door}")
        typer.echo(explanation.table())
        if json_out is not None:
            explanation.save_json(json_out, force=force)
        if html_out is not None:
            explanation.to_html(html_out, title=model, force=force)
        written = [str(path) for path in (json_out, html_out) if path is not None]
        if written:
            typer.echo(f"\nWritten: {', '.join(written)}")


@app.command()
def compress(
    model: ModelArgument,
    data: Annotated[
        Path,
        typer.Option(
            help="Calibration rows, no labels needed: .npz or .parquet with a column per input (others are left out), "
            "or .npy for a model with one tensor.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write to.", show_default=False)],
    checkpoint: CheckpointOption = None,
    budget: Annotated[
        float | None, typer.Option(help="Policy: fraction of the parameters that remain, say 0.2.", show_default=False)
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Policy: share of each site's variance to keep, say 0.99.", show_default=False)
    ] = None,
    embedding_rank: Annotated[
        int | None, typer.Option(help="Policy: code width of every embedding table, say 2.", show_default=False)
    ] = None,
    linear_rank: Annotated[
        int | None, typer.Option(help="Policy: rank of every Linear layer, say 64.", show_default=False)
    ] = None,
    rank: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=RANK",
            help="Rank of one site, or SITE=none to leave it alone; may be repeated.",
            show_default=False,
        ),
    ] = None,
    full_rank: Annotated[
        bool, typer.Option("--full-rank", help="Policy: change the form only, to prove the rewrite exact.")
    ] = False,
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
        typer.Option(help="With --report and --labels: rows to measure AUC and LogLoss on.", show_default=False),
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Compress a model and export it.

    Writes dense.onnx, low_rank.onnx, plan.safetensors and report.json (and low_rank.pt2 with --aoti, a page with
    --report), or nothing where anything goes wrong. All exports are checked against torch. Choose one policy: --budget,
    --energy, --full-rank, or ranks.

    Example: afm-fx compress shop.models:ctr --checkpoint ctr.pt --data clicks.parquet --budget 0.2 --out compressed
    """
    with reported_errors(debug):
        policy = _policy(budget, energy, embedding_rank, linear_rank, rank or [], full_rank=full_rank)
        sizes = () if buckets is None else check_batch_sizes(whole_numbers(buckets))
        names = None if columns is None else _names(columns)
        tasks = () if labels is None else tuple(_names(labels))
        if tasks and not recover_epochs and evaluation is None:
            raise UserError(
                "--labels are for recovery, say how long with --recover-epochs 3, or to measure on --evaluation rows"
            )
        if evaluation is not None and not (tasks and report is not None):
            raise UserError("--evaluation is measured for --report, on the columns that --labels names")
        timed = () if report is None or report_batch_sizes == "none" else tuple(whole_numbers(report_batch_sizes))
        job = CompressJob(
            model, data, out, policy, checkpoint, names, batch_size, max_rows, basis.value, force, pack, inputs, sizes,
            None if tables is None else tables.value, aoti, recover_epochs, tasks, report, timed, evaluation,
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


app.command()(sweep)
app.command()(refresh)
app.command()(check)
app.command()(bench)
app.command()(load)


def _policy(
    budget: float | None,
    energy: float | None,
    embedding_rank: int | None,
    linear_rank: int | None,
    ranks: list[str],
    *,
    full_rank: bool,
) -> Policy:
    """The one policy that the options name."""
    fixed = embedding_rank is not None or linear_rank is not None or bool(ranks)
    chosen = {"--budget": budget is not None, "--energy": energy is not None, "--full-rank": full_rank, "ranks": fixed}
    named = [name for name, given in chosen.items() if given]
    if not named:
        raise UserError(
            "choose a policy: --budget 0.2, --energy 0.99, --embedding-rank 2 --linear-rank 64, or --full-rank"
        )
    if len(named) > 1:
        raise UserError(f"choose one policy, not {' and '.join(named)}")
    if budget is not None:
        return Budget(budget)
    if energy is not None:
        return Energy(energy)
    if full_rank:
        return FullRank()
    return Fixed(embedding=embedding_rank, linear=linear_rank, overrides=dict(_override(each) for each in ranks))


def _override(text: str) -> tuple[str, int | None]:
    site, value = _name_and_value(text, "a rank is given as SITE=RANK")
    if value.lower() == "none":
        return site, None
    try:
        return site, int(value)
    except ValueError:
        raise UserError(f"a rank is given as SITE=RANK, a whole number or none; got '{text}'") from None


def _name_and_value(text: str, rule: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{rule}; got '{text}'")
    return name, value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
