"""Calibration: what every site's features look like on real rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from afm_fx.batches import Batch, checked_batches, flat_inputs
from afm_fx.diagnosis import explain_failed_batch, explain_non_finite
from afm_fx.errors import CalibrationError
from afm_fx.inputs import Inputs
from afm_fx.moments import NARROW_WIDTH, Moments, RunningMoments, Spread
from afm_fx.program import Program
from afm_fx.progress import track
from afm_fx.row_sample import RowSample, RowSampler
from afm_fx.sensitivity import Sensitivity, SensitivityCollector
from afm_fx.taps import Tap, joint_taps, parts_of, plain_taps
from afm_fx.tensor_files import complete, load_tensors, save_tensors
from afm_fx.traffic import Traffic, TrafficCounter, merged_traffic, scaled_traffic
from passes.drop_units import hidden_layers
from passes.graph_tools import clone_graph_module

Value = TypeVar("Value")
Mergeable = TypeVar("Mergeable", Moments, Sensitivity, Spread)

KIND = "statistics"
VERSION = 3

PENDING_ROWS = 4096
"""Rows of a narrow site gathered before their products are taken: small batches would pay per call."""


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
        header = {
            "rows": self.rows,
            "batches": self.batches,
            "counts": {name: moments.count for name, moments in self.moments.items()},
            "sensitivity_rows": {name: found.rows for name, found in self.sensitivities.items()},
            "activation_counts": {name: spread.count for name, spread in self.activations.items()},
            "traffic": {name: [keepers[id(traffic)], traffic.pooled] for name, traffic in self.traffic.items()},
            "sample": None if self.sample is None else [self.sample.limit, list(self.sample.columns)],
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
                keeper: Traffic(tensors[f"{keeper}/traffic"], bool(pooled))
                for keeper, pooled in header["traffic"].values()
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


def calibrate(
    program: Program,
    batches: Iterable[Inputs],
    *,
    max_rows: int | None = None,
    product_dtype: torch.dtype | None = None,
    sensitivity_rows: int = 0,
    sampled_rows: int = 0,
) -> Statistics:
    """Runs the program over batches and collects the moments of every site's features.

    Args:
        program: the captured model.
        batches: what the model takes, batch by batch.
        max_rows: stop after so many rows.
        product_dtype: dtype of the products within a batch for sites wider than 64 features; None for the program's
            own. Means, and sums over batches, are float64 always. With float32 a covariance carries a relative error
            of about 1e-7, no more than the float32 features themselves.
        sensitivity_rows: take gradients on the first so many rows, whole batches of them (:mod:`afm_fx.sensitivity`);
            they cost about three times as much as inference and need no labels. 0 for none.
        sampled_rows: keep so many of the rows, drawn at random, in the statistics and their file, for
            :func:`afm_fx.refit_plan`; some thousands are enough. These are real rows: keep the file as you keep your
            logs. 0 for none.

    Raises:
        CalibrationError: no batches, or NaN or infinite features (which batch, which node).
        BatchError: a batch does not fit, or holds an id outside its table (which batch, which input, which id).
    """
    plain, joint = plain_taps(program.graph_module), joint_taps(program.graph_module)
    tables = {name for tap in joint if tap.joint is not None for name in tap.joint.tables}
    alone = [tap for tap in plain if tap.site.name not in tables]
    totals = [_Total(program, tap, product_dtype) for tap in (*alone, *joint)]
    layers = list(hidden_layers(program.graph_module))
    counter, sampler = TrafficCounter(program.graph_module, (*alone, *joint)), RowSampler(program, sampled_rows)
    outputs = [total.tap.nodes for total in totals] + [(layer.activations[-1].name,) for layer in layers]
    inner = len(outputs)
    outputs += counter.nodes
    tapped = tapped_module(program.graph_module, outputs)
    activations: dict[str, Spread] = {}
    collector = SensitivityCollector(program, (*alone, *joint)) if sensitivity_rows > 0 else None
    rows = count = 0
    for batch in track(checked_batches(program, batches, max_rows), "calibrating", _length(batches)):
        with torch.no_grad():
            features = run_tapped(program, tapped, batch)
            for total, values in zip(totals, features, strict=False):
                total.add(values, batch)
            for layer, (values,) in zip(layers, features[len(totals) : inner], strict=True):
                spread = Spread.of(values.reshape(-1, layer.units))
                activations[layer.name] = activations[layer.name] + spread if layer.name in activations else spread
            counter.add(features[inner:])
            sampler.add(batch)
        if collector is not None and rows < sensitivity_rows:
            collector.add(batch)
        rows, count = rows + batch.rows, count + 1
    if count == 0:
        raise CalibrationError("there are no calibration batches")
    moments, traffic = {total.tap.site.name: total.result() for total in totals}, counter.result()
    sensitivities = {} if collector is None else collector.results
    for tap in joint:
        for name, columns in parts_of(tap):
            moments[name] = moments[tap.site.name].part(columns)
            if tap.site.name in traffic:
                traffic[name] = traffic[tap.site.name]
            if tap.site.name in sensitivities:
                sensitivities[name] = sensitivities[tap.site.name].part(columns)
    order = [tap.site.name for tap in (*plain, *joint)]
    return Statistics(
        _in_order(moments, order),
        rows,
        count,
        _in_order(sensitivities, order),
        activations,
        _in_order(traffic, order),
        sampler.result(),
    )


def _in_order(found: Mapping[str, Value], names: Sequence[str]) -> dict[str, Value]:
    return {name: found[name] for name in names if name in found}


def _length(batches: Iterable[Inputs]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


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


def tapped_module(module: GraphModule, outputs: Sequence[tuple[str, ...]]) -> GraphModule:
    """The program with other nodes, by name, as its output."""
    tapped = clone_graph_module(module)
    by_name = {node.name: node for node in tapped.graph.nodes}
    output = next(node for node in tapped.graph.nodes if node.op == "output")
    taps: tuple[tuple[Node, ...], ...] = tuple(tuple(by_name[name] for name in names) for names in outputs)
    output.args = (taps,)
    tapped.graph._codegen = torch.fx.graph.CodeGen()
    tapped.graph.eliminate_dead_code()
    tapped.recompile()
    return tapped


def run_tapped(program: Program, tapped: GraphModule, batch: Batch) -> Any:
    """What a tapped copy of the program gives for a batch.

    Raises:
        BatchError: the batch does not fit, or holds an id outside its table.
    """
    try:
        return tapped(*flat_inputs(program, batch))
    except (IndexError, RuntimeError) as error:
        raise explain_failed_batch(program, batch, error) from error


class _Total:
    """Running moments of one site; small batches are gathered first, since every product has a price per call."""

    def __init__(self, program: Program, tap: Tap, product_dtype: torch.dtype | None) -> None:
        self.tap = tap
        self._program = program
        self._width = tap.site.width
        self._product_dtype = torch.float64 if self._width <= NARROW_WIDTH else product_dtype
        self._moments = RunningMoments(self._width)
        self._pending: list[tuple[Batch, Tensor]] = []
        self._pending_rows = 0

    def add(self, values: tuple[Tensor, ...], batch: Batch) -> None:
        """Adds the features of every use of the site in one batch."""
        for features in self.tap.read(values):
            rows = features.reshape(-1, self._width)
            self._pending.append((batch, rows))
            self._pending_rows += rows.shape[0]
        if self._pending_rows >= PENDING_ROWS:
            self._flush()

    def result(self) -> Moments:
        """The moments of all rows added."""
        self._flush()
        return self._moments.result()

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = torch.cat([rows for _, rows in self._pending]) if len(self._pending) > 1 else self._pending[0][1]
        if not self._moments.add(rows, self._product_dtype or rows.dtype):
            raise explain_non_finite(self._program, self._pending)
        self._pending, self._pending_rows = [], 0
