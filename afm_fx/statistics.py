"""What calibration found out, mergeable, and its file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from afm_fx.errors import CalibrationError
from afm_fx.moments import Moments, Spread
from afm_fx.row_sample import RowSample
from afm_fx.sensitivity import Sensitivity
from afm_fx.tensor_files import complete, load_tensors, save_tensors
from afm_fx.traffic import Traffic, merged_traffic, scaled_traffic

Mergeable = TypeVar("Mergeable", Moments, Sensitivity, Spread)

KIND = "statistics"
VERSION = 3


@dataclass(frozen=True)
class Statistics:
    """Moments per site over the calibration rows; mergeable with ``+``.

    Attributes:
        moments: by site name; joint tables have an entry of their own beside those of their parts.
        rows: number of rows of the batches (a site may see more, for example one per position of a sequence), or their
            weight once they have decayed.
        batches: number of batches.
        sensitivities: by site name, what errors in the features cost; empty where gradients were not asked for.
        activations: by name of a hidden layer's Linear, what its units are behind the activation.
        traffic: by site name, how often each row of a table was looked up; tables above
            :data:`afm_fx.traffic.MAX_ROWS` rows have none.
        sample: some of the rows themselves, None where there are none.
    """

    moments: Mapping[str, Moments]
    rows: float
    batches: int
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
    activations: Mapping[str, Spread] = field(default_factory=dict)
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    sample: RowSample | None = None

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both sets of rows.

        Raises:
            CalibrationError: the two belong to models with different sites.
        """
        if self.moments.keys() != other.moments.keys():
            differing = sorted(self.moments.keys() ^ other.moments.keys())
            raise CalibrationError(
                f"statistics of different models cannot be merged: sites {differing[:5]} are not in both"
            )
        return Statistics(
            _merged(self.moments, other.moments),
            self.rows + other.rows,
            self.batches + other.batches,
            _merged(self.sensitivities, other.sensitivities),
            _merged(self.activations, other.activations),
            merged_traffic(self.traffic, other.traffic),
            self.sample + other.sample if self.sample and other.sample else self.sample or other.sample,
        )

    def decayed(self, factor: float) -> Statistics:
        """The statistics of the same rows, each counted ``factor`` times.

        Means, covariances and metrics stay what they are: the rows weigh less against those that are merged later.

        Raises:
            CalibrationError: the factor is not above 0 and up to 1.
        """
        if not 0 < factor <= 1:
            raise CalibrationError(f"a decay is a factor above 0 and up to 1, got {factor!r}")
        return replace(
            self,
            moments=_scaled(self.moments, factor),
            rows=self.rows * factor,
            sensitivities=_scaled(self.sensitivities, factor),
            activations=_scaled(self.activations, factor),
            traffic=scaled_traffic(self.traffic, factor),
            sample=None if self.sample is None else self.sample.decayed(factor),
        )

    def updated(self, new: Statistics, *, decay: float) -> Statistics:
        """These statistics decayed, and new ones: with one update a period, rows of k periods ago weigh ``decay**k``.

        Raises:
            CalibrationError: the two belong to different models, or the decay is not above 0 and up to 1.
        """
        return self.decayed(decay) + new

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the statistics as safetensors.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
        """
        header, tensors = self.entries()
        save_tensors(path, KIND, VERSION, header, tensors, force=force)

    def entries(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Header and tensors of a file."""
        tensors = {}
        for name, moments in self.moments.items():
            tensors[f"{name}/mean"], tensors[f"{name}/scatter"] = moments.mean, moments.scatter
        for name, found in self.sensitivities.items():
            tensors[f"{name}/gradient"], tensors[f"{name}/consumer"] = found.gradient, found.consumer
        for name, spread in self.activations.items():
            tensors[f"{name}/activation_mean"], tensors[f"{name}/activation_squares"] = spread.mean, spread.squares
        keepers: dict[int, str] = {}
        for name, traffic in self.traffic.items():  # tables of one joint table share their counts
            tensors[f"{keepers.setdefault(id(traffic), name)}/traffic"] = traffic.counts
        if self.sample is not None:
            tensors |= {f"sample/{name}": column for name, column in self.sample.columns.items()}
            tensors["sample_keys"] = self.sample.keys
        header: dict[str, Any] = {
            "rows": self.rows,
            "batches": self.batches,
            "counts": {name: moments.count for name, moments in self.moments.items()},
            "sensitivity_rows": {name: found.rows for name, found in self.sensitivities.items()},
            "activation_counts": {name: spread.count for name, spread in self.activations.items()},
            "traffic": {name: [keepers[id(traffic)], traffic.pooled] for name, traffic in self.traffic.items()},
            "sample": None if self.sample is None else [self.sample.limit, list(self.sample.columns)],
        }
        return header, tensors

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Statistics:
        """Reads statistics.

        Raises:
            FileFormatError: the file is missing, damaged or of another kind or version.
        """
        header, tensors = load_tensors(path, KIND, VERSION)
        with complete(path, KIND):
            return Statistics.from_entries(header, tensors)

    @staticmethod
    def from_entries(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Statistics:
        """The statistics of a file's header and tensors; incomplete ones raise what a wrong look-up raises."""
        moments = {
            name: Moments(_number(count), tensors[f"{name}/mean"], tensors[f"{name}/scatter"])
            for name, count in header["counts"].items()
        }
        sensitivities = {
            name: Sensitivity(_number(rows), tensors[f"{name}/gradient"], tensors[f"{name}/consumer"])
            for name, rows in header["sensitivity_rows"].items()
        }
        activations = {
            name: Spread(_number(count), tensors[f"{name}/activation_mean"], tensors[f"{name}/activation_squares"])
            for name, count in header["activation_counts"].items()
        }
        kept = {
            keeper: Traffic(tensors[f"{keeper}/traffic"], bool(pooled)) for keeper, pooled in header["traffic"].values()
        }
        return Statistics(
            moments,
            _number(header["rows"]),
            int(header["batches"]),
            sensitivities,
            activations,
            {name: kept[keeper] for name, (keeper, _) in header["traffic"].items()},
            _sample(header["sample"], tensors),
        )


def _merged(one: Mapping[str, Mergeable], other: Mapping[str, Mergeable]) -> dict[str, Mergeable]:
    """What both have, added up, and what only one has."""
    return {**other, **{name: own + other[name] if name in other else own for name, own in one.items()}}


def _scaled(found: Mapping[str, Mergeable], factor: float) -> dict[str, Mergeable]:
    return {name: each.scaled(factor) for name, each in found.items()}


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number of rows")
    return value


def _sample(header: Sequence[Any] | None, tensors: Mapping[str, Tensor]) -> RowSample | None:
    if header is None:
        return None
    limit, names = header
    return RowSample(int(limit), tensors["sample_keys"], {name: tensors[f"sample/{name}"] for name in names})
