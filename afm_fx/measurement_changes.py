"""What changed between two measurements, and whether by more than they scatter.

A p50 depends on the machine and on what else it did; the ratio to the reference of the same run much less so. Both are
compared. A change counts where the ranges that the two runs covered, round by round, do not meet.
"""

from __future__ import annotations

from afm_fx.errors import BenchmarkError
from afm_fx.measurement import Measurement, Range
from afm_fx.tables import render_table


def compare_measurements(old: Measurement, new: Measurement) -> str:
    """A table of what two measurements have in common, end-to-end; changes beyond the scatter are named.

    Raises:
        BenchmarkError: they have nothing in common, or their ratios are to different contenders.
    """
    references = old.contenders[0], new.contenders[0]
    if references[0] != references[1]:
        raise BenchmarkError(
            f"ratios were to '{references[0]}' and are to '{references[1]}' now: name the same contender first"
        )
    before, now = (
        {(each.batch_size, each.contender): each for each in result.timings if not each.on_device}
        for result in (old, new)
    )
    common = [key for key in now if key in before]
    if not common:
        raise BenchmarkError("the two results have no contender and batch size in common")
    rows = [
        (
            f"{size:,}",
            name,
            *_cells(before[size, name].p50_us, now[size, name].p50_us, "{:,.1f}"),
            _verdict(before[size, name].p50_range_us, now[size, name].p50_range_us),
            *_cells(before[size, name].ratio, now[size, name].ratio, "{:.3f}"),
            _verdict(before[size, name].ratio_range, now[size, name].ratio_range),
        )
        for size, name in common
    ]
    columns = (
        "batch", "contender", "p50 us before", "now", "change", "p50",
        f"p50 / {references[1]} before", "now ", "change ", "ratio",
    )  # fmt: skip
    lines = [render_table("what changed", columns, rows, left=2, text=("p50", "ratio"))]
    for label, keys in (("only before", before.keys() - now.keys()), ("only now", now.keys() - before.keys())):
        if keys:
            lines.append(f"{label}: {', '.join(f'{name} at batch {size:,}' for size, name in sorted(keys))}")
    lines += [f"warning: {each}" for each in _warnings(old, new)]
    lines.append("A change is named where the ranges over the rounds of the two runs do not meet.")
    return "\n".join(lines)


def _cells(before: float | None, now: float | None, form: str) -> tuple[str, str, str]:
    if before is None or now is None:
        return "", "", ""
    return form.format(before), form.format(now), f"{now / before:.3f}"


def _verdict(before: Range | None, now: Range | None) -> str:
    if before is None or now is None:
        return ""
    return "slower" if before[1] < now[0] else "faster" if now[1] < before[0] else ""


def _warnings(old: Measurement, new: Measurement) -> list[str]:
    """Why the two may not be comparable."""
    warnings = []
    if old.machine != new.machine:
        warnings.append(
            "another machine or other versions, so only the ratios compare:\n"
            f"  before {old.machine.line()}\n  now    {new.machine.line()}"
        )
    if old.threads != new.threads:
        warnings.append(f"{old.threads} threads before, {new.threads} now")
    before, now = ({each.contender: each.runtime for each in result.timings} for result in (old, new))
    warnings += [
        f"'{name}' ran in {before[name]} before, in {now[name]} now"
        for name in before.keys() & now.keys()
        if before[name] != now[name]
    ]
    return warnings
