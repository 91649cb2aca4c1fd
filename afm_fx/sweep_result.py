"""What a sweep found: as a table, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from afm_fx.output_directory import write_text
from afm_fx.plan import Plan
from afm_fx.sweep_plot import draw_sweep
from afm_fx.sweep_point import SweepPoint
from afm_fx.tables import render_table

CONFIDENCE = 0.95
"""Of the bounds of AUC drops."""


COLUMNS = tuple(field.name for field in fields(SweepPoint))


@dataclass(frozen=True)
class Sweep:
    """What every budget costs.

    Attributes:
        original: the model as it was.
        points: by budget, largest first.
        plans: of the points.
        unreachable: budgets that no ranks reach.
        smallest: the smallest share of the parameters that can be reached.
        batch_size: rows of a batch that was timed, None where nothing was.
        threads: threads that it was timed with.
        labelled_rows: rows with labels that AUC and LogLoss are of; 0 without.
    """

    original: SweepPoint
    points: tuple[SweepPoint, ...]
    plans: tuple[Plan, ...]
    unreachable: tuple[float, ...] = ()
    smallest: float = 0.0
    batch_size: int | None = None
    threads: int = 1
    labelled_rows: int = 0

    @property
    def all_points(self) -> tuple[SweepPoint, ...]:
        """The original, then the points."""
        return self.original, *self.points

    def table(self) -> str:
        """The sweep as text."""
        measured = [name for name in COLUMNS if any(getattr(each, name) is not None for each in self.all_points)]
        rows = [[_shown(name, getattr(each, name)) for name in measured] for each in self.all_points]
        rows[0][0] = "original"
        lines = [render_table("sweep", [_HEADINGS[name] for name in measured], rows)]
        if self.unreachable:
            shown = ", ".join(f"{budget:g}" for budget in self.unreachable)
            lines.append(f"not reachable: {shown}; the smallest reachable share is {self.smallest:.4f}")
        if self.labelled_rows:
            lines.append(
                f"AUC and LogLoss on {self.labelled_rows:,} labelled rows; bounds with {CONFIDENCE:.0%} confidence"
            )
        if self.batch_size is not None:
            lines.append(f"p50 packed in ONNX Runtime, batch size {self.batch_size:,}, threads: {self.threads}")
        return "\n".join(lines)

    def to_csv(self) -> str:
        """The points as CSV, the original first; empty cells for what was not measured."""
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(COLUMNS)
        for each in self.all_points:
            writer.writerow(["" if value is None else value for value in asdict(each).values()])
        return sink.getvalue()

    def to_json(self) -> str:
        """The points with their ranks, the original and the unreachable budgets as a JSON document."""
        points = zip(self.points, self.plans, strict=True)
        document: dict[str, Any] = {
            "original": asdict(self.original),
            "points": [{**asdict(each), "ranks": _ranks(plan)} for each, plan in points],
            "unreachable": list(self.unreachable),
            "smallest": self.smallest,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "labelled_rows": self.labelled_rows,
        }
        return json.dumps(document, indent=2)

    def save_csv(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes :meth:`to_csv`.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
        """
        write_text(Path(path), self.to_csv(), force=force)

    def save_json(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes :meth:`to_json`.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
        """
        write_text(Path(path), self.to_json() + "\n", force=force)

    def plot(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Draws logit error, and whatever else was measured, over the parameters; a PNG, SVG or PDF by its ending.

        Raises:
            MissingPackageError: matplotlib is not installed (the extra ``plot``).
            OutputExistsError: the path exists and ``force`` is not set.
            UserError: the ending is none of these.
        """
        draw_sweep(self.original, self.points, Path(path), batch_size=self.batch_size, force=force)


_HEADINGS: Mapping[str, str] = {
    "budget": "budget", "parameters": "parameters", "share": "share", "bytes": "bytes",
    "predicted_logit_rmse": "logit RMSE, predicted", "logit_rmse": "measured", "auc": "AUC",
    "auc_drop_bound": "AUC drop below", "log_loss": "LogLoss", "p50_us": "p50 us",
}  # fmt: skip


def _ranks(plan: Plan) -> dict[str, int | None]:
    return {site.name: site.rank for site in plan.sites}


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in ("parameters", "bytes"):
        return f"{value:,}"
    if name == "share":
        return f"{value:.2%}"
    return f"{value:g}" if name == "budget" else f"{value:.1f}" if name == "p50_us" else f"{value:.4f}"
