"""Draws a sweep: what every size of the model costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from afm_fx.errors import MissingPackageError, UserError
from afm_fx.output_directory import staged_file

if TYPE_CHECKING:
    from afm_fx.sweep import Sweep

FORMATS = (".png", ".svg", ".pdf")
STYLE: Any = {
    "font.size": 8, "text.color": "#222222", "axes.labelsize": 9, "axes.titlesize": 10, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": "#e6e6e6", "lines.linewidth": 1.6, "lines.markersize": 4, "legend.frameon": False, "savefig.dpi": 150,
}  # fmt: skip


def plot_sweep(sweep: Sweep, path: Path, *, force: bool = False) -> None:
    """Draws logit error, and whatever else was measured, over the share of the parameters: smaller models to the right.

    Args:
        path: a PNG, SVG or PDF by its ending.

    Raises:
        MissingPackageError: matplotlib is not installed (the extra ``plot``).
        OutputExistsError: the path exists and ``force`` is not set.
        UserError: the ending is none of these.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"'{path}' should end in {', '.join(FORMATS)}")
    try:
        from matplotlib import rc_context  # noqa: PLC0415 - an extra, and slow to import
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.ticker import NullLocator  # noqa: PLC0415
    except ImportError as error:
        raise MissingPackageError("a picture needs matplotlib: install afm-fx[plot]") from error
    titles = {
        "logit_rmse": "Logit error on held-out rows (RMSE)",
        "auc": "AUC on labelled rows",
        "p50_us": f"p50 at batch size {sweep.batch_size or 0:,} (µs)",
    }
    original, *points = sweep.points
    shown = [name for name in titles if getattr(original, name) is not None]
    shares = [point.share for point in points]
    with staged_file(path, force=force) as staged, rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(shown), 3.8), layout="constrained")
        for panel, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            panel.plot(shares, [getattr(point, name) for point in points], "o-", color="#1f5fa8", label="measured")
            if name == "logit_rmse":
                predicted = [point.predicted_logit_rmse for point in points]
                panel.plot(shares, predicted, "o--", color="#d9822b", mfc="white", label="predicted from single sites")
            else:
                panel.axhline(getattr(original, name), color="#9a9a9a", linestyle="--", label="original")
            if name != "auc":
                panel.set_ylim(bottom=0)
            panel.set(title=titles[name], xscale="log", xlabel="parameters left, share of the original")
            panel.invert_xaxis()
            panel.set_xticks(shares, [f"{share * 100:.2g}%" for share in shares])  # ticks at the models that there are
            panel.xaxis.set_minor_locator(NullLocator())
            panel.legend()
        figure.savefig(staged)
