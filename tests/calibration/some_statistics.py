"""Statistics made of given rows, with names in any order, to be taken apart and put together again."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from afm_fx.calibration.moments import Moments
from afm_fx.calibration.sensitivity import Sensitivity
from afm_fx.calibration.statistics import Statistics
from afm_fx.calibration.traffic import Traffic
from tests.graphs import correlated

WIDTHS = {"table": 3, "tables": 4, "layer": 5, "a layer": 4, "Z": 4}
"""In an order that is not that of the alphabet; sites of one width would be mistaken for one another unnoticed."""

MANY, IDS = 60, 11


@functools.cache
def all_rows() -> dict[str, Tensor]:
    """Features of every site, and ids, of so many rows."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        features = {
            name: correlated(MANY, width, 2, mean=10.0**place) for place, (name, width) in enumerate(WIDTHS.items())
        }
    return {
        **features,
        "ids": torch.randint(0, IDS, (MANY,), generator=generator),
    }


def statistics_of(rows: dict[str, Tensor], names: Sequence[str] = tuple(WIDTHS)) -> Statistics:
    """Every part of statistics, of some rows; tables share their counts. Without rows there are no gradients."""
    count = len(rows["ids"])
    traffic = Traffic(torch.bincount(rows["ids"], minlength=IDS).double())
    return Statistics(
        {name: Moments.of(rows[name]) if count else Moments.empty(WIDTHS[name]) for name in names},
        count,
        1 if count else 0,
        {name: Sensitivity(count, rows[name].T @ rows[name], 2 * rows[name].T @ rows[name]) for name in names if count},
        {
            name: Moments.diagonal_of(rows[name]) if count else Moments.empty(WIDTHS[name], diagonal=True)
            for name in names
        },
        dict.fromkeys([name for name in names if name.startswith("table")], traffic),
        {"the model": "m"},
    )


def nothing(name: str) -> Moments:
    """The spread of no activations."""
    return Moments.empty(WIDTHS[name], diagonal=True)


def parts_of(owners: Sequence[int], orders: Sequence[Sequence[str]]) -> list[Statistics]:
    """The rows by their owners, every part with its names in an order of its own."""
    owner, rows = torch.tensor(owners), all_rows()
    return [
        statistics_of({name: each[owner == part] for name, each in rows.items()}, order)
        for part, order in enumerate(orders)
    ]


def reloaded(statistics: Statistics, path: Path) -> Statistics:
    """The same from a file."""
    statistics.save(path, force=True)
    return Statistics.load(path)


def assert_whole(found: Statistics) -> None:
    """That statistics are those of all rows, to 1e-10 of their size."""
    whole = statistics_of(all_rows())
    assert found.rows == MANY
    for name, moments in whole.moments.items():
        assert found.moments[name].count == found.activations[name].count == found.sensitivities[name].rows == MANY
        close(found.moments[name].mean, moments.mean)
        close(found.moments[name].scatter, moments.scatter)
        close(found.activations[name].scatter, whole.activations[name].scatter)
        close(found.sensitivities[name].gradient, whole.sensitivities[name].gradient)
        close(found.sensitivities[name].consumer, whole.sensitivities[name].consumer)
    assert found.traffic["table"] is found.traffic["tables"]
    assert torch.equal(found.traffic["table"].counts, whole.traffic["table"].counts)


def close(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-10 of the largest number."""
    assert found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * max(float(expected.abs().max()), 1.0))
