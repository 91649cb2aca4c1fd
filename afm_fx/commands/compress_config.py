"""One compression from files to files, as data: the options of ``afm-fx compress``, and a file that repeats it.

Every field is an option of the command (:func:`afm_fx.commands.command_options.command_of` makes it), so an option is
added in this one place. :func:`afm_fx.commands.command_options.spelled` gives the fields that were set as the command
line spells them; that is what ``config.json`` holds and what ``--config`` reads. Each policy is one option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

import afm_fx
from afm_fx.commands.command_options import (
    COLUMNS,
    DATA,
    LABELS,
    OUTPUT,
    BatchRowsOption,
    CheckpointOption,
    EvaluationOption,
    ForceOption,
    MaxRowsOption,
    ModelArgument,
    existing,
    option_name,
)
from afm_fx.errors import UserError
from afm_fx.planning import BasisKind
from afm_fx.program import InputKind
from passes.serving import TableFormat

POLICY, CODES, SERVING = "Policy: choose one", "Codes and recovery", "Serving form"
LABELLED = ("auc_drop", "logloss_rise")
"""Limits that are measured on rows with labels."""

BUDGET_FORM = "a budget is a share, 0.2 of the parameters, or bytes=0.2 or flops=0.2"
P50_FORM = "a median is given in microseconds, 200, or with the rows of a call, 200@64"
RANK_FORM = "a rank is given as SITE=RANK, Embedding=RANK or Linear=RANK, a whole number or none"


@dataclass(frozen=True, kw_only=True)
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
            "(others are left out), or .npy for a model with one tensor.",
            show_default=False,
            callback=existing("data file"),
            rich_help_panel=DATA,
        ),
    ]
    checkpoint: CheckpointOption = None
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    batch_size: BatchRowsOption = 4096
    max_rows: MaxRowsOption = None
    statistics: Annotated[
        Path | None,
        Option(
            help="What afm-fx calibrate wrote: calibration is left out, --data then only serves to measure errors on.",
            show_default=False,
            callback=existing("file"),
            rich_help_panel=DATA,
        ),
    ] = None
    labels: Annotated[tuple[str, ...], LABELS] = ()
    evaluation: EvaluationOption = None
    budget: Annotated[
        str | None,
        Option(
            metavar="[KIND=]SHARE",
            help="The most exact model within a share of the original's parameters, say 0.2; bytes=0.2: of its bytes; "
            "flops=0.2: of its multiply-adds for one row.",
            show_default=False,
            rich_help_panel=POLICY,
        ),
    ] = None
    ranks: Annotated[
        tuple[str, ...],
        Option(
            metavar="SITE=RANK,...",
            help="Ranks of single sites; Embedding=2 is that of every table, Linear=64 of every Linear, none leaves "
            "them alone. The word full: every site at its width, which proves the rewrite and saves nothing.",
            show_default=False,
            rich_help_panel=POLICY,
        ),
    ] = ()
    energy: Annotated[
        float | None,
        Option(help="Share of each site's variance to keep, say 0.99.", show_default=False, rich_help_panel=POLICY),
    ] = None
    logit_rmse: Annotated[
        float | None,
        Option(
            help="The smallest model whose logits differ by no more than this, root mean square, on rows kept back.",
            show_default=False,
            rich_help_panel=POLICY,
        ),
    ] = None
    auc_drop: Annotated[
        float | None,
        Option(
            help="The smallest model whose AUC drops by no more than this, say 0.0005, on the --evaluation rows, with "
            "95 % confidence.",
            show_default=False,
            rich_help_panel=POLICY,
        ),
    ] = None
    logloss_rise: Annotated[
        float | None,
        Option(
            help="The smallest model whose LogLoss rises by no more than this, in the same way.",
            show_default=False,
            rich_help_panel=POLICY,
        ),
    ] = None
    p50_us: Annotated[
        str | None,
        Option(
            metavar="US[@ROWS]",
            help="The most exact model whose median call takes no longer here, in microseconds, in ONNX Runtime on one "
            "thread; 200@64: with 64 rows a call instead of 1.",
            show_default=False,
            rich_help_panel=POLICY,
        ),
    ] = None
    basis: Annotated[
        BasisKind,
        Option(
            metavar="BASIS",
            help=f"Where codes come from: {', '.join(BasisKind)}. measured is for each site the best of the others.",
            rich_help_panel=CODES,
        ),
    ] = BasisKind.MEASURED
    recover_epochs: Annotated[
        int,
        Option(
            min=0,
            metavar="N",
            help="Train the low-rank model on the original's logits for so many passes over the data, say 3; on "
            "--labels too, where they are named.",
            rich_help_panel=CODES,
        ),
    ] = 0
    pack: Annotated[
        bool,
        Option("--pack/--no-pack", help="Pack it for serving; its outputs stay the same.", rich_help_panel=SERVING),
    ] = True
    inputs: Annotated[
        InputKind,
        Option(
            help="What it takes: the model's own inputs, or ids and features apart (typed), where one float matrix "
            "carries both.",
            rich_help_panel=SERVING,
        ),
    ] = InputKind.ORIGINAL
    tables: Annotated[
        TableFormat | None,
        Option(
            help="Store its tables in fewer bits; the error is measured and reported.",
            show_default="as they are",
            rich_help_panel=SERVING,
        ),
    ] = None
    buckets: Annotated[
        tuple[int, ...],
        Option(
            metavar="ROWS,...",
            help="Also export it once per batch size, say 1,16,64: every shape fixed, one file of weights.",
            show_default=False,
            rich_help_panel=SERVING,
        ),
    ] = ()
    aoti: Annotated[
        bool,
        Option("--aoti", help="Also compile it with AOTInductor (needs a C++ compiler).", rich_help_panel=SERVING),
    ] = False
    out: Annotated[Path, Option(help="Directory to write to.", show_default=False, rich_help_panel=OUTPUT)]
    report: Annotated[
        Path | None,
        Option(
            help="Also draw a page that tells all of it, both files timed (needs the extra report).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None
    force: ForceOption = False

    def __post_init__(self) -> None:
        limited = next((name for name in LABELLED if getattr(self, name) is not None), None)
        if self.labels and not self.recover_epochs and self.evaluation is None:
            raise UserError(
                "--labels are for recovery, say how long with --recover-epochs 3, or to measure on --evaluation rows"
            )
        if limited and not (self.labels and self.evaluation):
            raise UserError(f"a limit on {limited} needs --evaluation rows, and --labels to name their columns")
        if self.evaluation and not (self.labels and (limited or self.report)):
            raise UserError("--evaluation is measured for --report or a limit, on the columns that --labels names")
        self.policy(evaluation=())  # refuses impossible values before any work
        if self.buckets:
            afm_fx.runtime.check_batch_sizes(self.buckets)

    def policy(self, evaluation: Iterable[afm_fx.measure.LabelledBatch] | None = None) -> afm_fx.planning.Policy:
        """The one policy that the options name.

        Args:
            evaluation: batches of (inputs, labels) for a limit on AUC or LogLoss.

        Raises:
            UserError: none or several are named, or one with an impossible value.
        """
        makers: dict[str, Callable[[], afm_fx.planning.Policy]] = {
            "budget": lambda: _budget(self.budget or ""),
            "ranks": lambda: _fixed(self.ranks),
            "energy": lambda: afm_fx.Energy(self.energy or 0.0),
            "logit_rmse": lambda: afm_fx.Tolerance(logit_rmse=self.logit_rmse),
            "auc_drop": lambda: afm_fx.Tolerance(auc_drop=self.auc_drop, evaluation=evaluation),
            "logloss_rise": lambda: afm_fx.Tolerance(logloss_rise=self.logloss_rise, evaluation=evaluation),
            "p50_us": lambda: _latency(self.p50_us or ""),
        }
        named = {name: make for name, make in makers.items() if getattr(self, name) not in (None, ())}
        if not named:
            raise UserError(
                "choose a policy: --budget 0.2, --ranks Embedding=2,Linear=64, --energy 0.99, --logit-rmse 0.02, "
                "--auc-drop 0.0005, --logloss-rise 0.001 or --p50-us 200"
            )
        if len(named) > 1:
            raise UserError(f"choose one policy, not {' and '.join(map(option_name, named))}")
        return next(iter(named.values()))()


def _budget(text: str) -> afm_fx.Budget:
    kind, equals, share = text.rpartition("=")
    kind = kind if equals else "parameters"
    if kind not in list(afm_fx.planning.CostKind):
        raise UserError(f"{BUDGET_FORM}; got '{text}'")
    return afm_fx.Budget(**{kind: _number(share, text, BUDGET_FORM)})


def _latency(text: str) -> afm_fx.Latency:
    p50_us, at, rows = text.partition("@")
    if at and not rows.isdecimal():
        raise UserError(f"{P50_FORM}; got '{text}'")
    return afm_fx.Latency(_number(p50_us, text, P50_FORM), int(rows) if at else 1)


def _number(number: str, text: str, form: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise UserError(f"{form}; got '{text}'") from None


def _fixed(texts: tuple[str, ...]) -> afm_fx.planning.Policy:
    if texts == ("full",):
        return afm_fx.FullRank()
    ranks = dict(map(_rank, texts))
    # torch's names of the classes stand for all of a kind: a site is called after an attribute, in small letters
    return afm_fx.Fixed(ranks.pop("Embedding", None), ranks.pop("Linear", None), ranks)


def _rank(text: str) -> tuple[str, int | None]:
    site, _, rank = text.partition("=")
    if site and rank.lower() == "none":
        return site, None
    if site and rank.isdecimal():
        return site, int(rank)
    raise UserError(f"{RANK_FORM}; got '{text}'")
