"""Draws a sweep: what every size of the model costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afm_fx.errors import MissingPackageError, UserError
from afm_fx.output_directory import refuse_existing_file, staging_directory
from afm_fx.sweep_point import SweepPoint

FORMATS = (".png", ".svg", ".pdf")
PANEL_WIDTH, HEIGHT, DPI = 4.6, 3.8, 150
INK, SOFT, FAINT = "#222222", "#9a9a9a", "#e6e6e6"

_MEASURED: dict[str, Any] = {"color": "#1f5fa8", "marker": "o", "markersize": 4, "linewidth": 1.6}
_PREDICTED: dict[str, Any] = {**_MEASURED, "color": "#d9822b", "markerfacecolor": "white", "linestyle": "--"}


def draw_sweep(
    original: SweepPoint,
    points: Sequence[SweepPoint],
    path: Path,
    *,
    batch_size: int | None = None,
    force: bool = False,
) -> None:
    """Writes a picture with a panel for each measured quantity over the share of the parameters.

    Args:
        original: drawn as a dashed line where it has a value of its own.
        points: of the sweep.
        path: a PNG, SVG or PDF by its ending.
        batch_size: that latencies are of.
        force: replace an existing file.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OutputExistsError: the path exists and ``force`` is not set.
        UserError: the ending is none of these.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"'{path}' should end in {', '.join(FORMATS)}")
    refuse_existing_file(path, force=force)
    figure = _drawn(original, points, batch_size)
    with staging_directory(path) as staging:
        staged = staging / path.name
        figure.savefig(staged, dpi=DPI)
        staged.replace(path)


def _drawn(original: SweepPoint, points: Sequence[SweepPoint], batch_size: int | None) -> Any:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise MissingPackageError("a picture needs matplotlib: install afm-fx[plot]") from error
    titles = ["Logit error on held-out rows (RMSE)"]
    titles += ["AUC on labelled rows"] if original.auc is not None else []
    titles += [f"p50 at batch size {batch_size:,} (µs)"] if original.p50_us is not None else []
    figure = Figure(figsize=(PANEL_WIDTH * len(titles), HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    shares = [point.share for point in points]
    for panel, title in zip(panels, titles, strict=True):
        _prepare(panel, title, shares)
    predicted = [each.predicted_logit_rmse for each in points]
    panels[0].plot(shares, predicted, **_PREDICTED, label="predicted from single sites")
    panels[0].plot(shares, [each.logit_rmse for each in points], **_MEASURED, label="measured")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=8)
    rest = iter(panels[1:])
    for name in ("auc", "p50_us"):
        if getattr(original, name) is None:
            continue
        panel = next(rest)
        panel.plot(shares, [getattr(each, name) for each in points], **_MEASURED, label="low-rank")
        panel.axhline(getattr(original, name), color=SOFT, linewidth=1.2, linestyle="--", label="original")
        panel.legend(frameon=False, fontsize=8)
        if name == "p50_us":
            panel.set_ylim(bottom=0)
    return figure


def _prepare(panel: Any, title: str, shares: Sequence[float]) -> None:
    """The axis of shares: smaller models to the right, ticks at the models that there are."""
    from matplotlib.ticker import NullLocator  # noqa: PLC0415 - an extra, and slow to import

    panel.set_title(title, fontsize=10, color=INK, loc="left")
    panel.set_xscale("log")
    panel.invert_xaxis()
    panel.set_xticks(list(shares), [_percent(share) for share in shares], fontsize=8)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("parameters left, share of the original", fontsize=9, color=INK)
    panel.tick_params(labelsize=8, colors=INK)
    panel.grid(visible=True, axis="y", color=FAINT, linewidth=0.8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"
