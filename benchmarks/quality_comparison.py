"""Compresses one trained model in several ways and measures each on the test rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import afm_fx
from afm_fx.errors import PolicyError
from afm_fx.ranking_metrics import auc, log_loss
from benchmarks.datasets import CtrDataset, Rows
from benchmarks.paired_bootstrap import AucDifference, bootstrap_auc_differences
from benchmarks.training import predict

ORIGINAL = "original"
AFM = "AFM"
WEIGHT_SVD = "SVD"
WEIGHT_SVD_SAME_RANKS = "SVD, AFM ranks"
BASES = {AFM: "afm", WEIGHT_SVD: "weight_svd"}
BUDGETS = (0.5, 0.2, 0.1, 0.05)
CALIBRATION_BATCH_ROWS = 8192


@dataclass(frozen=True)
class Setting:
    """One policy to compress by, with the words that name it in the tables."""

    label: str
    policy: afm_fx.Policy


@dataclass(frozen=True)
class Variant:
    """The model compressed by one setting and method, measured on the test rows.

    Attributes:
        setting: label of the setting.
        method: AFM, or SVD of the weights, with ranks of its own or AFM's.
        parameters: how many are left.
        share: of the original's parameters.
        auc: on the test rows.
        log_loss: mean cross-entropy in nats on the test rows.
        to_original: AUC minus the original's, paired.
        to_svd: for AFM, its AUC minus that of weight-SVD under the same setting, paired; None where that is refused.
        to_svd_same_ranks: for AFM, its AUC minus that of weight-SVD at AFM's ranks, paired.
    """

    setting: str
    method: str
    parameters: int
    share: float
    auc: float
    log_loss: float
    to_original: AucDifference
    to_svd: AucDifference | None
    to_svd_same_ranks: AucDifference | None


@dataclass(frozen=True)
class Refusal:
    """A setting that a method cannot reach, and why."""

    setting: str
    method: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The original and all its variants, measured on the same test rows.

    Attributes:
        parameters: of the original.
        auc: of the original.
        log_loss: of the original, in nats.
        calibration_rows: how many training rows AFM saw.
        seconds: for capture, calibration, all plans and all measurements.
    """

    parameters: int
    auc: float
    log_loss: float
    variants: tuple[Variant, ...]
    refusals: tuple[Refusal, ...]
    calibration_rows: int
    seconds: float


@dataclass(frozen=True)
class _Candidate:
    setting: str
    method: str
    parameters: int
    scores: NDArray[np.float64]

    @property
    def key(self) -> str:
        return f"{self.setting} / {self.method}"


def default_settings(budgets: Sequence[float] = BUDGETS) -> list[Setting]:
    """The budgets, and three uniform settings: every table at rank 1 or 2, every Linear at rank 4."""
    return [
        *(Setting(f"budget {budget:g}", afm_fx.Budget(parameters=budget)) for budget in budgets),
        *(Setting(f"tables rank {rank}", afm_fx.Fixed(embedding=rank, linear=None)) for rank in (1, 2)),
        Setting("Linears rank 4", afm_fx.Fixed(embedding=None, linear=4)),
    ]


def compare(
    model: nn.Module,
    dataset: CtrDataset,
    settings: Sequence[Setting],
    *,
    calibration_rows: int,
    resamples: int,
    seed: int,
) -> Comparison:
    """Compresses by every setting with AFM and with weight-SVD, and measures all on the test rows.

    Under a budget each method allots ranks by its own errors; weight-SVD is then also measured at AFM's ranks, which
    parts what the basis is worth from what the allotment is worth.

    Args:
        calibration_rows: at most how many training rows calibrate.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    start = time.perf_counter()
    rows = min(calibration_rows, len(dataset.train))
    program = afm_fx.capture(model, (dataset.train.inputs[:4],))
    statistics = afm_fx.calibrate(program, calibration_batches(dataset.train, rows))
    candidates: list[_Candidate] = []
    refusals: list[Refusal] = []
    for setting in settings:
        plans: dict[str, afm_fx.Plan] = {}
        for method in (WEIGHT_SVD, AFM):
            try:
                plans[method] = afm_fx.make_plan(program, statistics, setting.policy, basis=BASES[method])
            except PolicyError as error:
                refusals.append(Refusal(setting.label, method, str(error)))
        if AFM in plans and (WEIGHT_SVD not in plans or ranks(plans[AFM]) != ranks(plans[WEIGHT_SVD])):
            same_ranks = afm_fx.Fixed(embedding=None, linear=None, overrides=ranks(plans[AFM]))
            plans[WEIGHT_SVD_SAME_RANKS] = afm_fx.make_plan(program, statistics, same_ranks, basis="weight_svd")
        measure = partial(_measure, program, setting.label, dataset.test)
        candidates += [measure(method, plan) for method, plan in plans.items()]
    labels = dataset.test.labels.numpy()
    original = predict(program, dataset.test)
    variants = _variants(labels, original, candidates, whole=program.parameter_count(), resamples=resamples, seed=seed)
    return Comparison(
        parameters=program.parameter_count(),
        auc=auc(labels, original),
        log_loss=log_loss(labels, original),
        variants=tuple(variants),
        refusals=tuple(refusals),
        calibration_rows=rows,
        seconds=time.perf_counter() - start,
    )


def calibration_batches(rows: Rows, count: int) -> Iterator[tuple[torch.Tensor]]:
    """The first ``count`` rows, which a random split has shuffled, as batches of model inputs."""
    for inputs in rows.inputs[:count].split(CALIBRATION_BATCH_ROWS):
        yield (inputs,)


def ranks(plan: afm_fx.Plan) -> dict[str, int]:
    """The rank of every site that a plan factors."""
    return {site.name: site.rank for site in plan.sites if site.rank is not None}


def _measure(program: afm_fx.Program, setting: str, test: Rows, method: str, plan: afm_fx.Plan) -> _Candidate:
    compressed = afm_fx.apply_plan(program, plan)
    return _Candidate(setting, method, compressed.parameter_count(), predict(compressed, test))


def _variants(
    labels: NDArray[np.float32],
    original: NDArray[np.float64],
    candidates: Sequence[_Candidate],
    *,
    whole: int,
    resamples: int,
    seed: int,
) -> list[Variant]:
    scores = {ORIGINAL: original, **{candidate.key: candidate.scores for candidate in candidates}}
    pairs = [(candidate.key, ORIGINAL) for candidate in candidates]
    for candidate in candidates:
        if candidate.method == AFM:
            pairs += [(candidate.key, other) for other in _svd_partners(candidate, scores) if other is not None]
    drawn = bootstrap_auc_differences(labels, scores, pairs, resamples=resamples, seed=seed)
    differences = {(difference.first, difference.second): difference for difference in drawn}
    variants = []
    for candidate in candidates:
        own, same_ranks = _svd_partners(candidate, scores) if candidate.method == AFM else (None, None)
        variants.append(
            Variant(
                setting=candidate.setting,
                method=candidate.method,
                parameters=candidate.parameters,
                share=candidate.parameters / whole,
                auc=auc(labels, candidate.scores),
                log_loss=log_loss(labels, candidate.scores),
                to_original=differences[candidate.key, ORIGINAL],
                to_svd=differences[candidate.key, own] if own else None,
                to_svd_same_ranks=differences[candidate.key, same_ranks] if same_ranks else None,
            )
        )
    return variants


def _svd_partners(candidate: _Candidate, scores: dict[str, NDArray[np.float64]]) -> tuple[str | None, str | None]:
    """For an AFM variant, weight-SVD under the same setting and weight-SVD at the same ranks; often they are one."""
    own, same_ranks = (f"{candidate.setting} / {method}" for method in (WEIGHT_SVD, WEIGHT_SVD_SAME_RANKS))
    return own if own in scores else None, same_ranks if same_ranks in scores else own
