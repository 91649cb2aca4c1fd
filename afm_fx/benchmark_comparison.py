"""What changed between two benchmark results, and whether by more than the measurements scatter.

A p50 depends on the machine and on what else it did; the ratio to the reference of the same run much less so. Both are
compared. A change counts where the ranges that the two runs covered, round by round, do not meet.
"""

from __future__ import annotations

from dataclasses import dataclass

from afm_fx.benchmark_result import BenchmarkResult
from afm_fx.errors import BenchmarkError
from afm_fx.tables import render_table

Range = tuple[float, float]


@dataclass(frozen=True)
class Change:
    """One contender at one batch size in both results; end-to-end.

    Attributes:
        contender: its name.
        batch_size: rows per call.
        old_p50_us: median before, in microseconds.
        new_p50_us: median now.
        old_p50_range: smallest and largest median of the rounds before.
        new_p50_range: the same now.
        old_ratio: ratio to the reference before.
        new_ratio: ratio to the reference now.
        old_ratio_range: smallest and largest ratio of the rounds before.
        new_ratio_range: the same now.
    """

    contender: str
    batch_size: int
    old_p50_us: float
    new_p50_us: float
    old_p50_range: Range
    new_p50_range: Range
    old_ratio: float
    new_ratio: float
    old_ratio_range: Range
    new_ratio_range: Range

    @property
    def p50(self) -> float:
        """p50 now over p50 before; below 1 is faster."""
        return self.new_p50_us / self.old_p50_us

    @property
    def ratio(self) -> float:
        """The same of the ratios to the reference: a machine that is slower for all does not move it."""
        return self.new_ratio / self.old_ratio

    @property
    def p50_changed(self) -> bool:
        """Whether p50 moved by more than the rounds scatter."""
        return _apart(self.old_p50_range, self.new_p50_range)

    @property
    def ratio_changed(self) -> bool:
        """Whether the ratio to the reference moved by more than the rounds scatter."""
        return _apart(self.old_ratio_range, self.new_ratio_range)


@dataclass(frozen=True)
class BenchmarkComparison:
    """A result beside an older one.

    Attributes:
        reference: the contender that ratios are to, in both.
        changes: what both measured.
        warnings: why the two may not be comparable: another machine, other versions, other threads.
        only_old: (contender, batch size) that only the older one has.
        only_new: (contender, batch size) that only the newer one has.
    """

    reference: str
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    only_old: tuple[tuple[str, int], ...]
    only_new: tuple[tuple[str, int], ...]

    def table(self) -> str:
        """The comparison as text; changes beyond the scatter are named."""
        rows = [
            (
                f"{each.batch_size:,}",
                each.contender,
                f"{each.old_p50_us:,.1f}",
                f"{each.new_p50_us:,.1f}",
                f"{each.p50:.3f}",
                _verdict(each.p50, each.p50_changed),
                f"{each.old_ratio:.3f}",
                f"{each.new_ratio:.3f}",
                f"{each.ratio:.3f}",
                _verdict(each.ratio, each.ratio_changed),
            )
            for each in self.changes
        ]
        columns = (
            "batch", "contender", "p50 us before", "now", "change", "p50",
            f"p50 / {self.reference} before", "now ", "change ", "ratio",
        )  # fmt: skip
        lines = [render_table("what changed", columns, rows, left=2, text=("p50", "ratio"))]
        for label, pairs in (("only before", self.only_old), ("only now", self.only_new)):
            if pairs:
                lines.append(f"{label}: {', '.join(f'{name} at batch {size:,}' for name, size in pairs)}")
        lines += [f"warning: {each}" for each in self.warnings]
        lines.append("A change is named where the ranges over the rounds of the two runs do not meet.")
        return "\n".join(lines)


def compare_benchmarks(old: BenchmarkResult, new: BenchmarkResult) -> BenchmarkComparison:
    """Compares what two results have in common.

    Raises:
        BenchmarkError: they have nothing in common, or their ratios are to different contenders.
    """
    if old.contenders[:1] != new.contenders[:1]:
        raise BenchmarkError(
            f"ratios were to '{', '.join(old.contenders[:1])}' and are to '{', '.join(new.contenders[:1])}' now: name "
            "the same contender first"
        )
    before = {(each.contender, each.batch_size): each for each in old.timings}
    now = {(each.contender, each.batch_size): each for each in new.timings}
    if not before.keys() & now.keys():
        raise BenchmarkError("the two results have no contender and batch size in common")
    changes = tuple(
        Change(
            *key,
            before[key].p50_us,
            each.p50_us,
            before[key].p50_range_us,
            each.p50_range_us,
            before[key].ratio,
            each.ratio,
            before[key].ratio_range,
            each.ratio_range,
        )
        for key, each in now.items()
        if key in before
    )
    return BenchmarkComparison(
        reference=new.contenders[0],
        changes=changes,
        warnings=_warnings(old, new),
        only_old=tuple(key for key in before if key not in now),
        only_new=tuple(key for key in now if key not in before),
    )


def _warnings(old: BenchmarkResult, new: BenchmarkResult) -> tuple[str, ...]:
    found = []
    places = [(each.cpu, each.cores, each.gpu, each.system) for each in (old.machine, new.machine)]
    if places[0] != places[1]:
        found.append(
            f"another machine, so only the ratios compare: {old.machine.line()} before, {new.machine.line()} now"
        )
    versions = [{"Python": each.python, **dict(each.packages)} for each in (old.machine, new.machine)]
    moved = [
        f"{name} {versions[0].get(name, 'none')} -> {versions[1].get(name, 'none')}"
        for name in versions[0] | versions[1]
        if versions[0].get(name) != versions[1].get(name)
    ]
    if moved:
        found.append(f"other versions: {', '.join(moved)}")
    if old.settings.threads != new.settings.threads:
        found.append(f"{old.settings.threads} threads before, {new.settings.threads} now")
    runtimes = [{each.contender: each.runtime for each in result.timings} for result in (old, new)]
    found += [
        f"'{name}' ran in {runtimes[0][name]} before, in {runtime} now"
        for name, runtime in runtimes[1].items()
        if runtimes[0].get(name, runtime) != runtime
    ]
    return tuple(found)


def _apart(one: Range, other: Range) -> bool:
    return one[1] < other[0] or other[1] < one[0]


def _verdict(change: float, beyond: bool) -> str:
    if not beyond:
        return ""
    return "faster" if change < 1 else "slower"
