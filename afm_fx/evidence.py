"""What a policy measured before it decided, kept in the plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """One measured quantity of the program that a plan makes.

    Attributes:
        quantity: what was measured, with its unit.
        limit: what it may be at most.
        measured: what it is.
        predicted: what was predicted before it was measured, None where nothing was.
        bound: upper confidence bound (one-sided), None where the quantity has none.
        confidence: of the bound, for example 0.95.
        rows: rows that it was measured on; for a latency, rows of a batch.
        tried: how many programs the search measured on these rows.
        conditions: how it was measured, may be empty.
    """

    quantity: str
    limit: float
    measured: float
    predicted: float | None = None
    bound: float | None = None
    confidence: float | None = None
    rows: int = 0
    tried: int = 1
    conditions: str = ""

    def sentence(self) -> str:
        """The evidence as a line of text."""
        text = f"{self.quantity}: measured {_number(self.measured)}, at most {_number(self.limit)} allowed"
        if self.predicted is not None:
            text += f", {_number(self.predicted)} predicted"
        if self.bound is not None and self.confidence is not None:
            text += f", at most {_number(self.bound)} with {self.confidence:.0%} confidence"
        text += f" (rows: {self.rows:,}, programs measured: {self.tried}"
        return text + (f"; {self.conditions})" if self.conditions else ")")


def _number(value: float) -> str:
    return f"{value:.4g}"
