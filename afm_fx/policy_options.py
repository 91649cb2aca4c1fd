"""The options that name a policy on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from afm_fx.costs import CostKind
from afm_fx.errors import UserError
from afm_fx.latency_policy import Latency
from afm_fx.policies import Budget, Energy, Fixed, FullRank, Policy
from afm_fx.tolerance import CONFIDENCE, LabelledTolerance, Tolerance

BudgetOption = Annotated[
    float | None,
    typer.Option(help="Policy: fraction of the parameters that remain, say 0.2.", show_default=False),
]
BudgetOfOption = Annotated[
    CostKind, typer.Option(help="With --budget: what it is a fraction of; flops are multiply-adds of one row.")
]
EnergyOption = Annotated[
    float | None,
    typer.Option(help="Policy: share of each site's variance to keep, say 0.99.", show_default=False),
]
EmbeddingRankOption = Annotated[
    int | None, typer.Option(help="Policy: code width of every embedding table, say 2.", show_default=False)
]
LinearRankOption = Annotated[
    int | None, typer.Option(help="Policy: rank of every Linear layer, say 64.", show_default=False)
]
RankOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SITE=RANK",
        help="Rank of one site, or SITE=none to leave it alone; may be repeated.",
        show_default=False,
    ),
]
FullRankOption = Annotated[
    bool, typer.Option("--full-rank", help="Policy: change the form only, to prove the rewrite exact.")
]
LogitRmseOption = Annotated[
    float | None,
    typer.Option(
        help="Policy: the smallest model whose logits differ by no more than this, root mean square, on rows kept "
        "back.",
        show_default=False,
    ),
]
AucDropOption = Annotated[
    float | None,
    typer.Option(
        help="Policy: the smallest model whose AUC drops by no more than this, say 0.0005, on the --evaluation rows.",
        show_default=False,
    ),
]
LogLossRiseOption = Annotated[
    float | None,
    typer.Option(
        "--logloss-rise",
        help="Policy: the smallest model whose LogLoss rises by no more than this, on the --evaluation rows.",
        show_default=False,
    ),
]
ConfidenceOption = Annotated[
    float, typer.Option(help="With --auc-drop or --logloss-rise: confidence of the one-sided bound that must hold.")
]
P50Option = Annotated[
    float | None,
    typer.Option(
        help="Policy: the most exact model whose median call takes no longer here, in microseconds, in ONNX Runtime on "
        "one thread.",
        show_default=False,
    ),
]
P50BatchSizeOption = Annotated[int, typer.Option(min=1, help="With --p50-us: rows of a call.")]


@dataclass(frozen=True)
class PolicyOptions:
    """What the command line says of the policy; None, or the default, where it says nothing.

    Attributes:
        budget: fraction that may remain.
        budget_of: of what.
        energy: share of every site's variance.
        embedding_rank: of every table.
        linear_rank: of every Linear.
        ranks: "SITE=RANK" each.
        full_rank: change the form only.
        logit_rmse: see :class:`afm_fx.Tolerance`.
        auc_drop: likewise.
        logloss_rise: likewise.
        confidence: likewise.
        p50_us: see :class:`afm_fx.Latency`.
        p50_batch_size: likewise.
    """

    budget: float | None = None
    budget_of: CostKind = CostKind.PARAMETERS
    energy: float | None = None
    embedding_rank: int | None = None
    linear_rank: int | None = None
    ranks: tuple[str, ...] = ()
    full_rank: bool = False
    logit_rmse: float | None = None
    auc_drop: float | None = None
    logloss_rise: float | None = None
    confidence: float = CONFIDENCE
    p50_us: float | None = None
    p50_batch_size: int = 1

    def policy(self) -> Policy | LabelledTolerance:
        """The one policy that the options name.

        Raises:
            UserError: none or several are named, or one with an impossible value.
        """
        makers: dict[str, tuple[object, Callable[[Any], Policy | LabelledTolerance]]] = {
            "--budget": (self.budget, lambda share: Budget(**{self.budget_of.value: share})),
            "--logit-rmse": (self.logit_rmse, lambda limit: Tolerance(logit_rmse=limit)),
            "--auc-drop": (self.auc_drop, lambda limit: LabelledTolerance("auc_drop", limit, self.confidence)),
            "--logloss-rise": (
                self.logloss_rise,
                lambda limit: LabelledTolerance("logloss_rise", limit, self.confidence),
            ),
            "--p50-us": (self.p50_us, lambda limit: Latency(limit, self.p50_batch_size)),
            "--energy": (self.energy, Energy),
            "--full-rank": (self.full_rank or None, lambda _: FullRank()),
            "ranks": (self._ranks, lambda _: self._fixed()),
        }
        named = [name for name, (given, _) in makers.items() if given is not None]
        if not named:
            raise UserError(
                "choose a policy: --budget 0.2, --logit-rmse 0.02, --auc-drop 0.0005, --p50-us 200, --energy 0.99, "
                "--embedding-rank 2 --linear-rank 64, or --full-rank"
            )
        if len(named) > 1:
            raise UserError(f"choose one policy, not {' and '.join(named)}")
        given, make = makers[named[0]]
        return make(given)

    @property
    def _ranks(self) -> object:
        """Something where a rank is given."""
        given = self.embedding_rank is not None or self.linear_rank is not None or bool(self.ranks)
        return self.ranks if given else None

    def _fixed(self) -> Policy:
        ranks = dict(_override(each) for each in self.ranks)
        return Fixed(embedding=self.embedding_rank, linear=self.linear_rank, overrides=ranks)


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
