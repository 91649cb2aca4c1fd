"""One compression from files to files, as data: the options of ``afm-fx compress``, and a file that repeats it.

Every field is an option of the command (:func:`afm_fx.commands.command_options.command_of` makes it), so an option is
added in this one place. :func:`afm_fx.commands.command_options.spelled` gives the fields that were set as the command
line spells them; that is what ``config.json`` holds and what ``--config`` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from afm_fx.commands.command_options import (
    BatchRowsOption,
    CheckpointOption,
    ColumnsOption,
    ForceOption,
    MaxRowsOption,
    ModelArgument,
    option_name,
)
from afm_fx.errors import UserError
from afm_fx.measure import LabelledBatch
from afm_fx.planning import CONFIDENCE, BasisKind, Budget, CostKind, Energy, Fixed, FullRank, Latency, Policy, Tolerance
from afm_fx.program import InputKind
from afm_fx.runtime import check_batch_sizes
from passes.serving import TableFormat

LABELLED = ("auc_drop", "logloss_rise")
"""Limits that are measured on rows with labels."""


@dataclass(frozen=True)
class CompressConfig:
    """What ``afm-fx compress`` is asked for; each field's help text says what it means.

    Raises:
        UserError: no policy or several are named, a value is impossible, or options do not belong together.
    """

    model: ModelArgument
    data: Annotated[
        Path,
        Option(
            help="Calibration rows, no labels needed: .npz, .parquet or a folder of .parquet, with a column per input "
            "(others are left out), or .npy for a model with one tensor."
        ),
    ]
    out: Annotated[Path, Option(help="Directory to write to.")]
    checkpoint: CheckpointOption = None
    budget: Annotated[
        float | None, Option(help="Policy: fraction of the parameters that remain, say 0.2.", show_default=False)
    ] = None
    budget_of: Annotated[
        CostKind, Option(help="With --budget: what it is a fraction of; flops are multiply-adds of one row.")
    ] = CostKind.PARAMETERS
    energy: Annotated[
        float | None, Option(help="Policy: share of each site's variance to keep, say 0.99.", show_default=False)
    ] = None
    embedding_rank: Annotated[
        int | None, Option(help="Policy: code width of every embedding table, say 2.", show_default=False)
    ] = None
    linear_rank: Annotated[
        int | None, Option(help="Policy: rank of every Linear layer, say 64.", show_default=False)
    ] = None
    ranks: Annotated[
        tuple[str, ...],
        Option(
            metavar="SITE=RANK,...",
            help="Policy: ranks of single sites, comma-separated; SITE=none leaves one alone.",
            show_default=False,
        ),
    ] = ()
    full_rank: Annotated[
        bool, Option("--full-rank", help="Policy: change the form only, to prove the rewrite exact.")
    ] = False
    logit_rmse: Annotated[
        float | None,
        Option(
            help="Policy: the smallest model whose logits differ by no more than this, root mean square, on rows kept "
            "back.",
            show_default=False,
        ),
    ] = None
    auc_drop: Annotated[
        float | None,
        Option(
            help="Policy: the smallest model whose AUC drops by no more than this, say 0.0005, on the --evaluation "
            "rows.",
            show_default=False,
        ),
    ] = None
    logloss_rise: Annotated[
        float | None,
        Option(
            help="Policy: the smallest model whose LogLoss rises by no more than this, on the --evaluation rows.",
            show_default=False,
        ),
    ] = None
    confidence: Annotated[
        float, Option(help="With --auc-drop or --logloss-rise: confidence of the one-sided bound that must hold.")
    ] = CONFIDENCE
    p50_us: Annotated[
        float | None,
        Option(
            help="Policy: the most exact model whose median call takes no longer here, in microseconds, in ONNX "
            "Runtime on one thread.",
            show_default=False,
        ),
    ] = None
    p50_batch_size: Annotated[int, Option(min=1, help="With --p50-us: rows of a call.")] = 1
    basis: Annotated[BasisKind, Option(help="Where codes come from; measured: for each site the best of them.")] = (
        BasisKind.MEASURED
    )
    columns: ColumnsOption = ()
    batch_size: BatchRowsOption = 4096
    max_rows: MaxRowsOption = None
    statistics: Annotated[
        Path | None,
        Option(
            help="What afm-fx calibrate wrote: calibration is left out, --data then only serves to measure errors on.",
            show_default=False,
        ),
    ] = None
    pack: Annotated[
        bool, Option("--pack/--no-pack", help="Pack the low-rank model for serving; its outputs stay the same.")
    ] = True
    inputs: Annotated[
        InputKind,
        Option(
            help="What the low-rank model takes: the model's own inputs, or ids and features apart (typed), where one "
            "float matrix carries both."
        ),
    ] = InputKind.ORIGINAL
    buckets: Annotated[
        tuple[int, ...],
        Option(
            help="Also export the low-rank model once per batch size, every shape fixed, all files sharing one of "
            "weights: say 1,16,64.",
            show_default=False,
        ),
    ] = ()
    tables: Annotated[
        TableFormat | None,
        Option(
            help="Store the low-rank model's tables in fewer bits; the error is measured and reported.",
            show_default="as they are",
        ),
    ] = None
    aoti: Annotated[
        bool, Option("--aoti", help="Also compile the low-rank model with AOTInductor (needs a C++ compiler).")
    ] = False
    recover_epochs: Annotated[
        int,
        Option(
            min=0, help="Train the low-rank model on the original's logits for so many passes over the data, say 3."
        ),
    ] = 0
    labels: Annotated[
        tuple[str, ...],
        Option(
            metavar="COLUMNS",
            help="With --recover-epochs or --evaluation: columns of labels from 0 to 1, one per task in the order of "
            "the outputs, comma-separated, to learn from and to measure on.",
            show_default=False,
        ),
    ] = ()
    evaluation: Annotated[
        Path | None,
        Option(help="With --labels: rows to measure AUC and LogLoss on, for --report or a limit.", show_default=False),
    ] = None
    report: Annotated[
        Path | None, Option(help="Also draw a page that tells all of it (needs the extra report).", show_default=False)
    ] = None
    report_batch_sizes: Annotated[
        tuple[int, ...], Option(help="With --report: rows per call at which both files are timed, or none.")
    ] = (1, 64, 1024)
    force: ForceOption = False

    def __post_init__(self) -> None:
        self.policy(evaluation=())  # refuses impossible values before any work
        if self.buckets:
            check_batch_sizes(self.buckets)
        limited = next((name for name in LABELLED if getattr(self, name) is not None), None)
        if self.labels and not self.recover_epochs and self.evaluation is None:
            raise UserError(
                "--labels are for recovery, say how long with --recover-epochs 3, or to measure on --evaluation rows"
            )
        if limited and not (self.labels and self.evaluation):
            raise UserError(f"a limit on {limited} needs --evaluation rows, and --labels to name their columns")
        if self.evaluation and not (self.labels and (limited or self.report)):
            raise UserError("--evaluation is measured for --report or a limit, on the columns that --labels names")

    def policy(self, evaluation: Iterable[LabelledBatch] | None = None) -> Policy:
        """The one policy that the options name.

        Args:
            evaluation: batches of (inputs, labels) for a limit on AUC or LogLoss.

        Raises:
            UserError: none or several are named, or one with an impossible value.
        """
        makers: dict[str, Callable[[], Policy]] = {
            "budget": lambda: Budget(**{self.budget_of.value: self.budget}),
            "logit_rmse": lambda: Tolerance(logit_rmse=self.logit_rmse),
            "auc_drop": lambda: Tolerance(auc_drop=self.auc_drop, evaluation=evaluation, confidence=self.confidence),
            "logloss_rise": lambda: Tolerance(
                logloss_rise=self.logloss_rise, evaluation=evaluation, confidence=self.confidence
            ),
            "p50_us": lambda: Latency(self.p50_us or 0.0, self.p50_batch_size),
            "energy": lambda: Energy(self.energy or 0.0),
            "full_rank": FullRank,
            "embedding_rank": self._fixed,
            "linear_rank": self._fixed,
            "ranks": self._fixed,
        }
        named = {name: make for name, make in makers.items() if _is_set(getattr(self, name))}
        if not named:
            raise UserError(
                "choose a policy: --budget 0.2, --logit-rmse 0.02, --auc-drop 0.0005, --p50-us 200, --energy 0.99, "
                "--embedding-rank 2 --linear-rank 64, or --full-rank"
            )
        if len(set(named.values())) > 1:
            raise UserError(f"choose one policy, not {' and '.join(map(option_name, named))}")
        return next(iter(named.values()))()

    def _fixed(self) -> Policy:
        return Fixed(embedding=self.embedding_rank, linear=self.linear_rank, overrides=dict(map(_rank, self.ranks)))


def _is_set(value: object) -> bool:
    return value is not None and value is not False and value != ()


def _rank(text: str) -> tuple[str, int | None]:
    site, _, rank = text.partition("=")
    if site and rank.lower() == "none":
        return site, None
    try:
        return site, int(rank)
    except ValueError:
        raise UserError(f"a rank is given as SITE=RANK, a whole number or none; got '{text}'") from None
