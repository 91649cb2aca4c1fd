"""What calibration found out, its sums, and its file.

Statistics of disjoint rows add up, site by site, to those of all rows: ``a + b``. Who holds the parts, in which order,
and whether they come from files, does not matter. Which shares of a data set they are of is kept, so that none counts
twice and a missing one is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from afm_fx.calibration.moments import Moments
from afm_fx.calibration.sensitivity import Sensitivity
from afm_fx.calibration.traffic import Traffic, merged_traffic
from afm_fx.errors import CalibrationError
from afm_fx.io import complete, load_tensors, save_tensors

Mergeable = TypeVar("Mergeable", Moments, Sensitivity)

KIND = "statistics"
VERSION = 5

_SUMS: Mapping[str, type[Moments | Sensitivity]] = {
    "moments": Moments,
    "sensitivities": Sensitivity,
    "activations": Moments,
}
"""Attributes that hold a sum per site: a number of rows, and tensors."""


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


@dataclass(frozen=True)
class Statistics:
    """Moments per site over the calibration rows; mergeable with ``+``.

    Attributes:
        moments: by site name; joint tables have an entry of their own beside those of their parts.
        rows: number of rows of the batches (a site may see more, for example one per position of a sequence).
        batches: number of batches.
        sensitivities: by site name, what errors in the features cost; empty where gradients were not asked for.
        activations: by name of a hidden layer's Linear, what its units are behind the activation, each for itself.
        traffic: by site name, how often each row of a table was looked up; tables above
            :data:`afm_fx.calibration.traffic.MAX_ROWS` rows have none.
        origin: what they were collected with, by name: a digest of the model, and options of calibration.
        shares: of data sets, where the rows are only some of theirs or were put together from them.
    """

    moments: Mapping[str, Moments]
    rows: int
    batches: int
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
    activations: Mapping[str, Moments] = field(default_factory=dict)
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    shares: frozenset[Share] = frozenset()

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both sets of rows.

        Raises:
            CalibrationError: the two are of different models or were collected with other options, or rows are in both.
        """
        sites = sorted(self.moments.keys() ^ other.moments.keys())
        if sites:
            raise CalibrationError(f"statistics of different models cannot be added: sites {sites[:5]} are not in both")
        one, two = self.layout(), other.layout()
        differing = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
        if differing:
            raise CalibrationError(
                f"statistics of different models or options cannot be added: they differ in {', '.join(differing)}"
            )
        return replace(
            self,
            moments=_merged(self.moments, other.moments),
            rows=self.rows + other.rows,
            batches=self.batches + other.batches,
            sensitivities=_merged(self.sensitivities, other.sensitivities),
            activations=_merged(self.activations, other.activations),
            traffic=merged_traffic(self.traffic, other.traffic),
            shares=joined_shares(self.shares, other.shares),
        )

    def layout(self) -> dict[str, object]:
        """What is alike in statistics that may be added, by what messages call it."""
        keepers = _keepers(self.traffic)
        return {
            **self.origin,
            "sites": {name: moments.width for name, moments in self.moments.items()},
            "activations": {name: len(spread.mean) for name, spread in self.activations.items()},
            "tables": {name: (traffic.rows, keepers[id(traffic)]) for name, traffic in self.traffic.items()},
        }

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the statistics as safetensors.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
        """
        tensors: dict[str, Tensor] = {}
        counts: dict[str, dict[str, float]] = {kind: {} for kind in _SUMS}
        for kind, sums in _SUMS.items():
            count, *names = (each.name for each in fields(sums))
            for site, found in getattr(self, kind).items():
                counts[kind][site] = getattr(found, count)
                tensors |= {f"{kind}/{site}/{name}": getattr(found, name) for name in names}
        keepers = _keepers(self.traffic)
        for traffic in self.traffic.values():
            tensors[f"traffic/{keepers[id(traffic)]}"] = traffic.counts
        header: dict[str, Any] = {
            "rows": self.rows,
            "batches": self.batches,
            "counts": counts,
            "traffic": {name: [keepers[id(traffic)], traffic.pooled] for name, traffic in self.traffic.items()},
            "origin": dict(self.origin),
            "shares": sorted(self.shares),
        }
        save_tensors(path, KIND, VERSION, header, tensors, force=force)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Statistics:
        """Reads statistics.

        Raises:
            FileFormatError: the file is missing, damaged or of another kind or version.
        """
        header, tensors = load_tensors(path, KIND, VERSION)
        with complete(path, KIND):
            return _read(header, tensors)


def _read(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Statistics:
    """The statistics of a file's header and tensors; incomplete ones raise what a wrong look-up raises."""
    sums: dict[str, dict[str, Any]] = {}
    for kind, made in _SUMS.items():
        names = [each.name for each in fields(made)][1:]
        sums[kind] = {
            site: made(int(count), *(tensors[f"{kind}/{site}/{name}"] for name in names))
            for site, count in header["counts"][kind].items()
        }
    kept = {
        keeper: Traffic(tensors[f"traffic/{keeper}"], bool(pooled)) for keeper, pooled in header["traffic"].values()
    }
    return Statistics(
        rows=int(header["rows"]),
        batches=int(header["batches"]),
        traffic={name: kept[keeper] for name, (keeper, _) in header["traffic"].items()},
        origin=dict(header["origin"]),
        shares=frozenset(Share(int(number), int(of), str(data)) for number, of, data in header["shares"]),
        **sums,
    )


def _merged(one: Mapping[str, Mergeable], other: Mapping[str, Mergeable]) -> dict[str, Mergeable]:
    """What both have, added up, and what only one has."""
    return {**other, **{name: own + other[name] if name in other else own for name, own in one.items()}}


def _keepers(traffic: Mapping[str, Traffic]) -> dict[int, str]:
    """Under which name counts are kept: tables of one joint table share theirs."""
    keepers: dict[int, str] = {}
    for name in sorted(traffic):
        keepers.setdefault(id(traffic[name]), name)
    return keepers
