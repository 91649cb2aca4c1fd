"""How a compression from files is repeated: its command line, and the files that it read and wrote."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from afm_fx.basis import BasisKind
from afm_fx.costs import CostKind
from afm_fx.latency_policy import Latency
from afm_fx.policies import Budget, Energy, Fixed, FullRank, Policy
from afm_fx.report_facts import Recipe, RecipeFile, sha256_of
from afm_fx.tolerance import CONFIDENCE, LabelledTolerance, Tolerance
from afm_fx.typed_inputs import InputKind

if TYPE_CHECKING:
    from afm_fx.compress_job import CompressJob


def recipe_of(job: CompressJob, rows: int, plan: Path) -> Recipe:
    """The recipe of a job.

    Args:
        job: that was done.
        rows: of its data.
        plan: the plan's file, wherever it is at the moment.
    """
    files = [RecipeFile("calibration rows", str(job.data), f"{rows:,} rows, {_bytes(job.data)}")]
    if job.statistics is not None:
        files.append(RecipeFile("statistics", str(job.statistics), _bytes(job.statistics), sha256_of(job.statistics)))
    if job.checkpoint is not None:
        files.append(RecipeFile("checkpoint", str(job.checkpoint), _bytes(job.checkpoint), sha256_of(job.checkpoint)))
    if job.evaluation is not None:
        files.append(RecipeFile("labelled rows", str(job.evaluation), _bytes(job.evaluation)))
    files.append(RecipeFile("plan", str(job.out / plan.name), _bytes(plan), sha256_of(plan)))
    return Recipe(shlex.join(["afm-fx", "compress", *_arguments(job)]), tuple(files))


def _bytes(path: Path) -> str:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return f"{sum(each.stat().st_size for each in files):,} bytes"


def _arguments(job: CompressJob) -> Iterator[str]:
    yield job.model
    given: dict[str, object] = {
        "--checkpoint": job.checkpoint,
        "--data": job.data,
        "--statistics": job.statistics,
        "--columns": ",".join(job.columns) if job.columns else None,
        "--max-rows": job.max_rows,
        "--batch-size": job.batch_size,
    }
    yield from _options(given)
    yield from _policy(job.policy)
    given = {
        "--basis": job.basis if job.basis != BasisKind.MEASURED else None,
        "--inputs": str(InputKind(job.inputs)) if job.inputs != InputKind.ORIGINAL else None,
        "--buckets": ",".join(map(str, job.buckets)) or None,
        "--tables": job.tables,
        "--recover-epochs": job.recover_epochs or None,
        "--labels": ",".join(job.labels) or None,
        "--evaluation": job.evaluation,
        "--report": job.report,
        "--report-batch-sizes": ",".join(map(str, job.report_batch_sizes)) or "none" if job.report else None,
        "--out": job.out,
    }
    yield from () if job.pack else ("--no-pack",)
    yield from ("--aoti",) if job.aoti else ()
    yield from _options(given)


def _options(given: dict[str, object]) -> Iterator[str]:
    for name, value in given.items():
        if value is not None:
            yield from (name, str(value))


def _policy(policy: Policy | LabelledTolerance) -> Iterator[str]:
    """The options that name a policy; nothing for one that the command line does not know."""
    match policy:
        case Budget():
            yield from ("--budget", str(policy.share))
            yield from () if policy.kind is CostKind.PARAMETERS else ("--budget-of", policy.kind.value)
        case LabelledTolerance():
            yield from (f"--{policy.quantity.replace('_', '-')}", str(policy.limit))
            yield from () if policy.confidence == CONFIDENCE else ("--confidence", str(policy.confidence))
        case Tolerance(logit_rmse=limit) if limit is not None:
            yield from ("--logit-rmse", str(limit))
        case Latency(p50_us=limit, provider="cpu", threads=1):
            yield from ("--p50-us", str(limit))
            yield from () if policy.batch_size == 1 else ("--p50-batch-size", str(policy.batch_size))
        case Energy():
            yield from ("--energy", str(policy.fraction))
        case FullRank():
            yield "--full-rank"
        case Fixed():
            yield from _options({"--embedding-rank": policy.embedding, "--linear-rank": policy.linear})
            for site, rank in policy.overrides.items():
                yield from ("--rank", f"{site}={'none' if rank is None else rank}")
