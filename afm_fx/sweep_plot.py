"""Draws a sweep: what every size of the model costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from afm_fx.errors import MissingPackageError, UserError
from afm_fx.output_directory import refuse_existing_file, staged_file

if TYPE_CHECKING:
    from afm_fx.sweep import Sweep, SweepPoint

FORMATS = (".png", ".svg", ".pdf")
PANEL_WIDTH, HEIGHT, DPI = 4.6, 3.8, 150
INK, SOFT, FAINT = "#222222", "#9a9a9a", "#e6e6e6"

_MEASURED: dict[str, Any] = {"color": "#1f5fa8", "marker": "o", "markersize": 4, "linewidth": 1.6}
_PREDICTED: dict[str, Any] = {**_MEASURED, "color": "#d9822b", "markerfacecolor": "white", "linestyle": "--"}


def plot_sweep(sweep: Sweep, path: Path, *, force: bool = False) -> None:
    """Draws logit error, and whatever else was measured, over the share of the parameters.

    Args:
        sweep: its original is a dashed line.
        path: a PNG, SVG or PDF by its ending.
        force: replace an existing file.

    Raises:
        MissingPackageError: matplotlib is not installed (the extra ``plot``).
        OutputExistsError: the path exists and ``force`` is not set.
        UserError: the ending is none of these.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"'{path}' should end in {', '.join(FORMATS)}")
    refuse_existing_file(path, force=force)
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise MissingPackageError("a picture needs matplotlib: install afm-fx[plot]") from error
    titles = {
        "logit_rmse": "Logit error on held-out rows (RMSE)",
        "auc": "AUC on labelled rows",
        "p50_us": f"p50 at batch size {sweep.batch_size or 0:,} (µs)",
    }
    shown = [name for name in titles if getattr(sweep.points[0], name) is not None]
    figure = Figure(figsize=(PANEL_WIDTH * len(shown), HEIGHT), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw_panel(panel, titles[name], name, *sweep.points)
    with staged_file(path, force=force) as staged:
        figure.savefig(staged, dpi=DPI)


def _draw_panel(panel: Any, title: str, name: str, original: SweepPoint, *points: SweepPoint) -> None:
    """One quantity: smaller models to the right, ticks at the models that there are."""
    from matplotlib.ticker import NullLocator  # noqa: PLC0415 - an extra, and slow to import

    shares = [point.share for point in points]
    if name == "logit_rmse":
        predicted = [point.predicted_logit_rmse for point in points]
        panel.plot(shares, predicted, **_PREDICTED, label="predicted from single sites")
    else:
        panel.axhline(getattr(original, name), color=SOFT, linewidth=1.2, linestyle="--", label="original")
    label = "measured" if name == "logit_rmse" else "low-rank"
    panel.plot(shares, [getattr(point, name) for point in points], **_MEASURED, label=label)
    if name != "auc":
        panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=8)
    panel.set_title(title, fontsize=10, color=INK, loc="left")
    panel.set_xscale("log")
    panel.invert_xaxis()
    panel.set_xticks(shares, [f"{share * 100:.2g}%" for share in shares], fontsize=8)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("parameters left, share of the original", fontsize=9, color=INK)
    panel.tick_params(labelsize=8, colors=INK)
    panel.grid(visible=True, axis="y", color=FAINT, linewidth=0.8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
