"""Hidden units that are as good as constant on real rows: found by their spread, confirmed by the logits without them.

A ReLU network of a CTR model often has many units that never fire. They cost as much as the others, in the weight that
makes them and in the one that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from afm_fx.calibration import Statistics
from afm_fx.planning.simulation import Simulation
from afm_fx.program import Inputs, Program
from passes.graph import clone_graph_module
from passes.sites import DropUnits, Units, hidden_layers

VARIANCE_SHARES = (1e-5, 1e-7, 0.0)
"""Units whose activation varies up to this share of their layer's most varying unit are tried, from the boldest on."""

TOLERATED = 1e-6
"""Share of the logits' variance that leaving units out may cost, in mean squared error on held-out rows."""


def constant_units(
    program: Program, statistics: Statistics, held_out: Sequence[Inputs], *, max_rows: int | None = None
) -> dict[str, Units]:
    """The units to leave out, by name of the Linear that makes them; layers that lose none are not named.

    Args:
        held_out: rows on which the effect on the logits is measured.
        max_rows: measure on so many of them at most.
    """
    original = Simulation(program, held_out, (), max_rows=max_rows).original.to(torch.float64)
    tolerated = TOLERATED * float(original.var(dim=0, correction=0).sum())
    for share in VARIANCE_SHARES:
        found = _varying_less(program, statistics, share)
        if not found:
            return {}
        trimmed = Simulation(without_units(program, found), held_out, (), max_rows=max_rows).original.to(torch.float64)
        if float((trimmed - original).square().mean()) <= tolerated:
            return found
    return {}


def without_units(program: Program, units: Mapping[str, Units]) -> Program:
    """The program without some hidden units (:class:`passes.sites.drop_units.DropUnits`).

    Raises:
        TableIndexError: a layer is not there, or has another width.
    """
    if not units:
        return program
    module = clone_graph_module(program.graph_module)
    DropUnits(units)(module)
    return program.with_graph(module)


def restricted(statistics: Statistics, units: Mapping[str, Units]) -> Statistics:
    """The statistics of a program without some hidden units, from those of the program with them."""
    return replace(
        statistics,
        moments={
            name: moments.part(units[name].kept) if name in units else moments
            for name, moments in statistics.moments.items()
        },
        sensitivities={
            name: sensitivity.part(units[name].kept) if name in units else sensitivity
            for name, sensitivity in statistics.sensitivities.items()
        },
        activations={},  # of the units as they were: nothing reads them once the constant ones are gone
    )


def _varying_less(program: Program, statistics: Statistics, share: float) -> dict[str, Units]:
    found = {}
    for layer in hidden_layers(program.graph_module):
        activation = statistics.activations.get(layer.name)
        if activation is None or activation.count < layer.units:
            continue
        variance = activation.covariance
        kept = (variance > share * variance.max()).nonzero().flatten()
        if 0 < len(kept) < layer.units:
            found[layer.name] = Units(kept, activation.mean)
    return found
