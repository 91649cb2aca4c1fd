"""Compresses one trained model in several ways and measures each on the test rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import afm_fx
from afm_fx.calibration import plain_taps
from afm_fx.errors import PolicyError
from afm_fx.measure import MAX_DIFFERENT_BATCHES
from afm_fx.planning import Simulation, SiteBases, SiteErrors
from benchmarks.datasets import CtrDataset, Rows
from benchmarks.quality.paired_bootstrap import AucDifference, bootstrap_auc_differences
from benchmarks.quality.ranking_metrics import auc, log_loss
from benchmarks.quality.training import predict
from benchmarks.quality.uniform_ranks import best_uniform_plan

ORIGINAL = "original"
MEASURED = "measured"
AFM = "AFM"
WEIGHT_SVD = "SVD"
AFM_UNIFORM = "AFM, uniform ranks"
WEIGHT_SVD_UNIFORM = "SVD, uniform ranks"
BASES = {AFM: "afm", WEIGHT_SVD: "weight_svd"}
UNIFORM = {AFM_UNIFORM: "afm", WEIGHT_SVD_UNIFORM: "weight_svd"}
BUDGETS = [0.5, 0.2, 0.1, 1 / 13, 1 / 16, 0.05, 0.03, 0.02]
CALIBRATION_ROWS = 200_000
"""Training rows that calibrate, at most."""

CALIBRATION_BATCH_ROWS = 8192
HELD_OUT_ROWS = 4096
SENSITIVITY_ROWS = 32_768
TIMED_SECONDS = 1.0
"""Time for each file and batch size, about."""


@dataclass(frozen=True)
class Setting:
    """One policy to compress by, with the words that name it in the tables."""

    label: str
    policy: afm_fx.planning.Policy


@dataclass(frozen=True)
class Variant:
    """The model compressed by one setting and method, measured on the test rows.

    Attributes:
        setting: label of the setting.
        method: by measured logit errors, or AFM or SVD of the weights, each with ranks by energy or one rank for all.
        parameters: how many are left.
        share: of the original's parameters.
        auc: on the test rows.
        log_loss: mean cross-entropy in nats on the test rows.
        seconds: for the plan.
        logit_error: root mean squared logit error on held-out rows, where the plan measured it.
        predicted_logit_error: as the sites' own errors add up, where they were measured.
        to_original: AUC minus the original's, paired.
        to_peer: for a measured plan, its AUC minus that of the better peer under the same setting, paired: AFM or SVD
            at uniform ranks for a budget, or at the setting's own ranks.
    """

    setting: str
    method: str
    parameters: int
    share: float
    auc: float
    log_loss: float
    seconds: float
    logit_error: float | None
    predicted_logit_error: float | None
    to_original: AucDifference
    to_peer: AucDifference | None


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
        calibration_rows: how many training rows calibrated.
        calibration_seconds: for moments and gradients.
        seconds: for capture, calibration, all plans and all measurements.
        rank_correlation: Spearman's, of predicted and measured logit errors over random plans; None without those.
        random_plans: how many of them.
        timing: of the original and of measured plans under budgets; None where nothing was timed.
    """

    parameters: int
    auc: float
    log_loss: float
    variants: tuple[Variant, ...]
    refusals: tuple[Refusal, ...]
    calibration_rows: int
    calibration_seconds: float
    seconds: float
    rank_correlation: float | None = None
    random_plans: int = 0
    timing: afm_fx.measure.Measurement | None = None


@dataclass(frozen=True)
class _Candidate:
    setting: str
    method: str
    plan: afm_fx.Plan
    parameters: int
    seconds: float
    scores: NDArray[np.float64]

    @property
    def key(self) -> str:
        return f"{self.setting} / {self.method}"


def default_settings(budgets: Sequence[float]) -> list[Setting]:
    """The budgets, and three uniform settings: every table at rank 1 or 2, every Linear at rank 4."""
    return [
        *(Setting(f"budget {budget:.3g}", afm_fx.Budget(parameters=budget)) for budget in budgets),
        *(Setting(f"tables rank {rank}", afm_fx.Fixed(embedding=rank, linear=None)) for rank in (1, 2)),
        Setting("Linears rank 4", afm_fx.Fixed(embedding=None, linear=4)),
    ]


def compare(
    model: nn.Module,
    dataset: CtrDataset,
    settings: Sequence[Setting],
    *,
    resamples: int,
    seed: int,
    random_plans: int = 0,
    latency_batch_sizes: Sequence[int] = (),
) -> Comparison:
    """Compresses by every setting with measured plans, AFM and weight-SVD, and measures all on the test rows.

    Under a budget AFM and weight-SVD are also given one rank for all tables and one for all Linears, that pair of all
    that use the budget up which errs least on held-out rows.

    Args:
        resamples: of the bootstrap.
        seed: of the bootstrap and of random plans.
        random_plans: predict and measure the logit error of so many plans with ranks at random.
        latency_batch_sizes: time the original and what measured plans under budgets make of it, at these batch sizes.
    """
    start = time.perf_counter()
    rows = min(CALIBRATION_ROWS, len(dataset.train))
    held = min(HELD_OUT_ROWS, rows // 5)
    program = afm_fx.capture(model, (dataset.train.inputs[:4],))
    began = time.perf_counter()
    statistics = afm_fx.calibrate(
        program, calibration_batches(dataset.train, held, rows), sensitivity_rows=SENSITIVITY_ROWS
    )
    calibrated = time.perf_counter() - began
    task = _Planning(program, statistics, [inputs for (inputs,) in calibration_batches(dataset.train, 0, held)])
    candidates: list[_Candidate] = []
    refusals: list[Refusal] = []
    for setting in settings:
        for method in methods_of(setting):
            began = time.perf_counter()
            try:
                plan = task.plan(setting, method)
            except PolicyError as error:
                refusals.append(Refusal(setting.label, method, str(error)))
                continue
            seconds = time.perf_counter() - began
            compressed = afm_fx.apply_plan(program, plan)
            scores = predict(compressed, dataset.test)
            candidates.append(_Candidate(setting.label, method, plan, compressed.parameter_count(), seconds, scores))
    labels = dataset.test.labels.numpy()
    original = predict(program, dataset.test)
    variants = _variants(labels, original, candidates, whole=program.parameter_count(), resamples=resamples, seed=seed)
    timed = {each.setting: each.plan for each in candidates if each.method == MEASURED and "budget" in each.setting}
    return Comparison(
        parameters=program.parameter_count(),
        auc=auc(labels, original),
        log_loss=log_loss(labels, original),
        variants=tuple(variants),
        refusals=tuple(refusals),
        calibration_rows=rows,
        calibration_seconds=calibrated,
        seconds=time.perf_counter() - start,
        rank_correlation=task.rank_correlation(random_plans, seed) if random_plans else None,
        random_plans=random_plans,
        timing=time_plans(program, timed, dataset.test.inputs, latency_batch_sizes) if latency_batch_sizes else None,
    )


def methods_of(setting: Setting) -> tuple[str, ...]:
    """The methods that a setting is tried with."""
    return (MEASURED, *(UNIFORM if isinstance(setting.policy, afm_fx.Budget) else ()), *BASES)


@dataclass(frozen=True)
class _Planning:
    """What every plan is made from."""

    program: afm_fx.Program
    statistics: afm_fx.Statistics
    held_out: Sequence[torch.Tensor]

    def plan(self, setting: Setting, method: str) -> afm_fx.Plan:
        if method == MEASURED:
            rows = [(inputs,) for inputs in self.held_out]
            return afm_fx.make_plan(self.program, self.statistics, setting.policy, held_out=rows)
        if method in BASES:
            return afm_fx.make_plan(self.program, self.statistics, setting.policy, basis=BASES[method])
        if not isinstance(setting.policy, afm_fx.Budget):
            raise PolicyError(f"{method} are those of a budget")
        budget = float(setting.policy.parameters or 0)
        plan = best_uniform_plan(self.program, self.statistics, budget, UNIFORM[method], self.held_out)
        if plan is None:
            raise PolicyError("no uniform ranks fit the budget")
        return plan

    def rank_correlation(self, plans: int, seed: int) -> float:
        """Spearman's correlation of predicted and measured logit errors over plans with ranks at random."""
        taps = plain_taps(self.program.graph_module)
        simulation = Simulation(self.program, [(inputs,) for inputs in self.held_out], taps)
        bases = {tap.site.name: SiteBases(self.program, tap, self.statistics, one_centre=True) for tap in taps}
        errors = SiteErrors(simulation, bases)
        generator = np.random.default_rng(seed)
        predicted, measured = [], []
        for _ in range(plans):
            ranks = {tap.site.name: int(2 ** generator.uniform(0, np.log2(tap.site.width / 2))) for tap in taps}
            predicted.append(sum(errors.best(name, rank)[1] for name, rank in ranks.items()))
            measured.append(errors.together(ranks))
        first, second = (np.argsort(np.argsort(column)) for column in (predicted, measured))
        correlation: NDArray[np.float64] = np.asarray(np.corrcoef(first, second))
        return float(correlation[0, 1])


def calibration_batches(rows: Rows, first: int, end: int) -> Iterator[tuple[torch.Tensor]]:
    """The rows from ``first`` to ``end``, which a random split has shuffled, as batches of model inputs."""
    for inputs in rows.inputs[first:end].split(CALIBRATION_BATCH_ROWS):
        yield (inputs,)


def time_plans(
    program: afm_fx.Program, plans: Mapping[str, afm_fx.Plan], inputs: torch.Tensor, batch_sizes: Sequence[int]
) -> afm_fx.measure.Measurement:
    """Exports the original and every plan's program, packed, and times the files side by side on one thread.

    Args:
        program: the original.
        plans: by the name that the timing gives them.
        inputs: [rows, columns], rows of real traffic.
        batch_sizes: rows a call.

    Raises:
        ExportError: a program cannot be exported, or its file disagrees with torch.
    """
    with tempfile.TemporaryDirectory() as directory:
        files = {ORIGINAL: Path(directory) / "original.onnx"}
        afm_fx.export_onnx(program, files[ORIGINAL])
        for number, (name, plan) in enumerate(plans.items()):
            files[name] = Path(directory) / f"{number}.onnx"
            afm_fx.export_onnx(afm_fx.pack(afm_fx.apply_plan(program, plan)).program, files[name])
        rows = inputs[: max(batch_sizes) * MAX_DIFFERENT_BATCHES]
        return afm_fx.benchmark(files, rows, batch_sizes=batch_sizes, threads=1, seconds=TIMED_SECONDS)


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
    areas = {key: auc(labels, each) for key, each in scores.items()}
    peers = {
        candidate.key: peer
        for candidate in candidates
        if candidate.method == MEASURED and (peer := _peer(candidate, candidates, areas)) is not None
    }
    pairs = [*((candidate.key, ORIGINAL) for candidate in candidates), *peers.items()]
    drawn = bootstrap_auc_differences(labels, scores, pairs, resamples=resamples, seed=seed)
    differences = {(difference.first, difference.second): difference for difference in drawn}
    return [
        Variant(
            setting=candidate.setting,
            method=candidate.method,
            parameters=candidate.parameters,
            share=candidate.parameters / whole,
            auc=areas[candidate.key],
            log_loss=log_loss(labels, candidate.scores),
            seconds=candidate.seconds,
            logit_error=candidate.plan.logit_error,
            predicted_logit_error=candidate.plan.predicted_logit_error,
            to_original=differences[candidate.key, ORIGINAL],
            to_peer=differences[candidate.key, peers[candidate.key]] if candidate.key in peers else None,
        )
        for candidate in candidates
    ]


def _peer(measured: _Candidate, candidates: Sequence[_Candidate], areas: Mapping[str, float]) -> str | None:
    """The better of AFM and weight-SVD under the same setting, at uniform ranks where it is a budget."""
    same = [each for each in candidates if each.setting == measured.setting and each is not measured]
    uniform = [each for each in same if each.method in UNIFORM]
    return max((each.key for each in uniform or same), key=areas.__getitem__, default=None)
