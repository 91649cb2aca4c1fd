"""Collects statistics batch by batch; calibration, in one process or many, is about which batches it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from afm_fx.calibration.moments import NARROW_WIDTH, Moments
from afm_fx.calibration.sensitivity import SensitivityCollector
from afm_fx.calibration.statistics import Statistics
from afm_fx.calibration.taps import Tap, joint_taps, parts_of, plain_taps
from afm_fx.calibration.traffic import TrafficCounter
from afm_fx.program import Batch, Program, explain_non_finite, explained_failure, node_values
from passes.sites import hidden_layers

Value = TypeVar("Value")

PENDING_ROWS = 4096
"""Rows of a narrow site gathered before their products are taken: small batches would pay per call."""


class StatisticsCollector:
    """Runs batches and adds up what is seen of every site.

    Args:
        gradients: whether gradients may be asked for.
    """

    def __init__(self, program: Program, *, gradients: bool) -> None:
        plain, joint = plain_taps(program.graph_module), joint_taps(program.graph_module)
        tables = {name for tap in joint if tap.joint is not None for name in tap.joint.tables}
        taps = (*(tap for tap in plain if tap.site.name not in tables), *joint)
        self._program, self._joint = program, joint
        self._order = [tap.site.name for tap in (*plain, *joint)]
        self._totals = [_Total(program, tap) for tap in taps]
        self._layers = list(hidden_layers(program.graph_module))
        self._counter = TrafficCounter(program.graph_module, taps)
        features = {name for tap in taps for name in tap.nodes}
        units = {layer.activations[-1].name for layer in self._layers}
        self._values = node_values(program.graph_module, features | units | self._counter.nodes)
        self._activations = {layer.name: Moments.empty(layer.units, diagonal=True) for layer in self._layers}
        self._sensitivity = SensitivityCollector(program, taps) if gradients else None
        self._rows = self._batches = 0

    def add(self, batch: Batch, *, gradients: bool, seed: int) -> None:
        """Adds a batch.

        Args:
            seed: of its random numbers, so that they do not depend on the batches before.

        Raises:
            CalibrationError: NaN or infinite features.
            BatchError: an id outside its table.
        """
        with torch.no_grad():
            with explained_failure(self._program, batch):
                values = self._values(self._program.cast_inputs(batch.leaves))
            for total in self._totals:
                total.add([values[name] for name in total.tap.nodes], batch)
            for layer in self._layers:
                units = values[layer.activations[-1].name]
                self._activations[layer.name] += Moments.diagonal_of(units.reshape(-1, layer.units))
            self._counter.add(values)
        if self._sensitivity is not None and gradients:
            self._sensitivity.add(batch, seed)
        self._rows, self._batches = self._rows + batch.rows, self._batches + 1

    def result(self) -> Statistics:
        """What was seen so far, with an entry for each table of a joint table.

        Raises:
            CalibrationError: NaN or infinite features.
        """
        moments = {total.tap.site.name: total.result() for total in self._totals}
        traffic = self._counter.result()
        sensitivities = {} if self._sensitivity is None else dict(self._sensitivity.results)
        for tap in self._joint:
            for name, columns in parts_of(tap):
                moments[name] = moments[tap.site.name].part(columns)
                if tap.site.name in traffic:
                    traffic[name] = traffic[tap.site.name]
                if tap.site.name in sensitivities:
                    sensitivities[name] = sensitivities[tap.site.name].part(columns)
        return Statistics(
            _in_order(moments, self._order),
            self._rows,
            self._batches,
            _in_order(sensitivities, self._order),
            dict(self._activations),
            _in_order(traffic, self._order),
        )


def _in_order(found: Mapping[str, Value], names: Sequence[str]) -> dict[str, Value]:
    return {name: found[name] for name in names if name in found}


class _Total:
    """Running moments of one site; small batches are gathered first, since every product has a price per call."""

    def __init__(self, program: Program, tap: Tap) -> None:
        self.tap = tap
        self._program = program
        self._width = tap.site.width
        self._moments = Moments.empty(self._width)
        self._pending: list[tuple[Batch, Tensor]] = []

    def add(self, values: Sequence[Tensor], batch: Batch) -> None:
        """Adds the features of every use of the site in one batch."""
        for features in self.tap.read(values):
            self._pending.append((batch, features.reshape(-1, self._width)))
        if sum(len(rows) for _, rows in self._pending) >= PENDING_ROWS:
            self.result()

    def result(self) -> Moments:
        """The moments of all rows added."""
        if self._pending:
            rows = torch.cat([rows for _, rows in self._pending])
            moments = Moments.of(rows, torch.float64 if self._width <= NARROW_WIDTH else rows.dtype)
            if not moments.is_finite:
                raise explain_non_finite(self._program, self._pending)
            self._moments += moments
            self._pending = []
        return self._moments
