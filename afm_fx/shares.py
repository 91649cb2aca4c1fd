"""Shares of a data set: which of them statistics are of, so that none counts twice and a missing one is noticed."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from afm_fx.errors import CalibrationError


class Share(NamedTuple):
    """One of ``of`` equal shares of a data set, ``number`` from 0.

    ``data`` tells the data set from others: its name, rows, rows a batch, and a digest of its first batch.
    """

    number: int
    of: int
    data: str

    def __str__(self) -> str:
        return f"{self.number}/{self.of} of {self.data}"


def joined_shares(one: Collection[Share], other: Collection[Share]) -> frozenset[Share]:
    """The shares of both.

    Raises:
        CalibrationError: rows are in both.
    """
    twice = sorted(frozenset(one) & frozenset(other))
    if twice:
        raise CalibrationError(f"share {twice[0]} is in both statistics: its rows would count twice")
    joined = frozenset(one) | frozenset(other)
    sizes: dict[str, int] = {}
    for share in sorted(joined):
        if sizes.setdefault(share.data, share.of) != share.of:
            raise CalibrationError(f"share {share} cannot be added to shares of another size: rows would count twice")
    return joined


def missing_shares(shares: Collection[Share]) -> list[Share]:
    """The shares that are not there, of the data sets of which some are."""
    sets = sorted({(share.data, share.of) for share in shares})
    every = (Share(number, of, data) for data, of in sets for number in range(of))
    return [share for share in every if share not in shares]
