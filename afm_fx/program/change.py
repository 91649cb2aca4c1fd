"""What a lossless or approximate step gives back: the changed program, and a report of what was done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from afm_fx.program.program import Program

Report = TypeVar("Report")


@dataclass(frozen=True)
class Change(Generic[Report]):
    """A program and how it came about.

    Attributes:
        program: the changed program; the one given to the step is left as it was.
        report: sizes, errors and choices; ``print(change.report.table())`` shows them.
    """

    program: Program
    report: Report
