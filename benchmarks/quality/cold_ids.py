"""What a compressed model does with ids that calibration never saw.

A share of the ids of the largest tables is left out of calibration and of the rows that the planner measures on; the
trained model knows them all. The test rows that hold such an id are *cold*, the others are *warm*. The same plan made
from all rows is the control: what cold rows lose beyond it is the price of not having seen them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

import afm_fx
from afm_fx.errors import UserError
from benchmarks.common import options
from benchmarks.common.ctr_models import ModelConfig
from benchmarks.common.results import RESULTS, Table, result_files
from benchmarks.datasets import CtrDataset, EncodingConfig
from benchmarks.quality.comparison import CALIBRATION_BATCH_ROWS, CALIBRATION_ROWS, SENSITIVITY_ROWS
from benchmarks.quality.paired_bootstrap import AucDifference, bootstrap_auc_differences
from benchmarks.quality.ranking_metrics import auc
from benchmarks.quality.recovery import BUDGETS, PLANNING_ROWS
from benchmarks.quality.trained_model import trained_model
from benchmarks.quality.training import TrainingConfig, predict

COLUMNS = ("budget", "test rows", "number", "calibrated on", "original AUC", "AUC", "AUC - original")
ALL_IDS, LEFT_OUT = "all ids", "some ids left out"
WARM, COLD = "warm", "cold"


@dataclass(frozen=True)
class ColdLine:
    """One plan, measured on one kind of test rows.

    Attributes:
        budget: share of the original's parameters.
        calibrated_on: all ids, or without those left out.
        rows: "warm" or "cold".
        count: number of these test rows.
        original_auc: the original's AUC on them.
        auc: the compressed model's.
        to_original: the difference, paired.
    """

    budget: float
    calibrated_on: str
    rows: str
    count: int
    original_auc: float
    auc: float
    to_original: AucDifference


def cold_ids(
    *,
    dataset: options.Dataset,
    path: options.DataPath,
    model: options.ModelName,
    budget: options.Budgets = BUDGETS,
    fields: Annotated[int, typer.Option(help="Leave ids out of so many of the largest vocabularies.")] = 2,
    share: Annotated[float, typer.Option(help="Share of their ids that calibration does not see.")] = 0.3,
    rows: options.DataRows = None,
    max_epochs: options.MaxEpochs = 12,
    resamples: options.Resamples = 1000,
    seed: options.Seed = 2024,
    threads: options.Threads = None,
    checkpoint_dir: options.CheckpointDir = None,
    output_dir: options.OutputDir = RESULTS,
    tag: options.Tag = None,
    force: options.Force = False,
) -> None:
    """Compress a trained model while calibration does not see some ids, and measure it on the rows that hold them."""
    files = result_files(output_dir, "cold-ids", dataset, model, tag, force=force)
    trained = trained_model(
        dataset,
        path,
        model,
        rows=rows,
        encoding=EncodingConfig(seed=seed),
        config=ModelConfig(seed=seed),
        training=TrainingConfig(max_epochs, seed=seed),
        folder=checkpoint_dir,
        threads=threads,
    )
    lines = experiment(trained.model, trained.data, budget, fields=fields, share=share, resamples=resamples, seed=seed)
    title = f"Cold ids: {model} on {dataset}, {share:.0%} of the ids of {fields} fields unseen in calibration"
    what = (
        "Cold test rows hold an id that calibration did not see (the trained model knows it); in brackets the 95 % "
        "interval of the paired difference. The plan from all ids is the control."
    )
    files.write(title, [trained.description(), what, table(lines)], {**trained.content(), "lines": lines})


def experiment(
    model: nn.Module,
    dataset: CtrDataset,
    budgets: Sequence[float],
    *,
    fields: int,
    share: float,
    resamples: int,
    seed: int,
) -> list[ColdLine]:
    """Compresses a trained model twice at every budget, with and without some ids in calibration.

    Args:
        model: the trained original.
        dataset: its data.
        budgets: shares of the parameters to keep.
        fields: ids are left out of so many of the largest vocabularies.
        share: of their ids that are left out, above 0 and below 1.
        resamples: of the bootstrap.
        seed: picks the ids, and drives the bootstrap.

    Raises:
        UserError: an impossible share or number of fields.
    """
    if not 0 < share < 1 or not 1 <= fields <= len(dataset.sparse):
        raise UserError(f"leave a share between 0 and 1 out of 1 to {len(dataset.sparse)} fields")
    cold = _cold_ids(dataset, fields, share, seed)
    kept = {
        ALL_IDS: (dataset.train.inputs, dataset.validation.inputs),
        LEFT_OUT: tuple(rows.inputs[~_holds(cold, rows.inputs)] for rows in (dataset.train, dataset.validation)),
    }
    program = afm_fx.capture(model, (dataset.train.inputs[:4],))
    original = predict(program, dataset.test)
    is_cold = _holds(cold, dataset.test.inputs).numpy()
    parts = {WARM: ~is_cold, COLD: is_cold}
    lines: list[ColdLine] = []
    for name, (train, validation) in kept.items():
        batches = [(each,) for each in train[:CALIBRATION_ROWS].split(CALIBRATION_BATCH_ROWS)]
        statistics = afm_fx.calibrate(program, batches, sensitivity_rows=SENSITIVITY_ROWS)
        for budget in budgets:
            policy = afm_fx.Budget(parameters=budget)
            plan = afm_fx.make_plan(program, statistics, policy, held_out=[(validation[:PLANNING_ROWS],)])
            scores = predict(afm_fx.apply_plan(program, plan), dataset.test)
            labels = dataset.test.labels.numpy()
            for rows, chosen in parts.items():
                truth, before, after = labels[chosen], original[chosen], scores[chosen]
                (difference,) = bootstrap_auc_differences(
                    truth, {"after": after, "before": before}, [("after", "before")], resamples=resamples, seed=seed
                )
                areas = auc(truth, before), auc(truth, after)
                lines.append(ColdLine(budget, name, rows, int(chosen.sum()), *areas, difference))
    return sorted(lines, key=lambda line: (-line.budget, line.rows == COLD, line.calibrated_on))


def _cold_ids(dataset: CtrDataset, fields: int, share: float, seed: int) -> dict[int, Tensor]:
    """For the columns of the largest vocabularies, which ids are left out, [vocabulary] of booleans."""
    generator = np.random.default_rng(seed)
    sizes = [field.vocabulary_size for field in dataset.sparse]
    largest = sorted(range(len(sizes)), key=lambda column: -sizes[column])[:fields]
    return {column: torch.from_numpy(generator.random(sizes[column]) < share) for column in largest}


def _holds(cold: dict[int, Tensor], inputs: Tensor) -> Tensor:
    """Which rows hold an id that is left out."""
    return torch.stack([flags[inputs[:, column].long()] for column, flags in cold.items()]).any(dim=0)


def table(lines: Sequence[ColdLine]) -> Table:
    """One row per line."""
    rows = [
        (
            f"{line.budget:g}",
            line.rows,
            f"{line.count:,}",
            line.calibrated_on,
            f"{line.original_auc:.4f}",
            f"{line.auc:.4f}",
            str(line.to_original),
        )
        for line in lines
    ]
    return Table(COLUMNS, rows)
