"""Adds up the statistics of the processes of a group, exactly, by two sums whatever the number of processes.

The first sum is of counts and of count times mean, which gives the counts ``N`` and means ``m`` of all rows. The second
is of scatters about that common mean: with a process's count ``N_r``, mean ``m_r`` and scatter ``S_r``,

    S = sum_r  S_r + N_r (m_r - m)(m_r - m)^T.

Everything is float64, and nothing cancels: a part's scatter is about its own mean, and ``m_r - m`` is small where the
parts are alike. What is summed has a name and is sent in the order of the names, so that it does not matter in which
order a process holds it. Of symmetric matrices one half is sent.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from afm_fx.moments import Moments
from afm_fx.process_groups import Group, add_up, agreed, check_alike
from afm_fx.sensitivity import Sensitivity
from afm_fx.shares import joined_shares
from afm_fx.statistics import Statistics
from afm_fx.traffic import Traffic

_Named = dict[tuple[str, str], Tensor]
"""Tensors by kind and name of a site."""


def all_reduced(own: Statistics, group: Group) -> Statistics:
    """The statistics of the rows of all processes, the same in each; all must call.

    Raises:
        CalibrationError: they are of different models or options, or hold a share twice.
        OtherProcessError: a process died.
    """
    told = agreed(group, None, (own.layout(), own.shares, list(own.sensitivities)))
    check_alike([layout for layout, _, _ in told])
    shares = functools.reduce(joined_shares, (shares for _, shares, _ in told))
    graded = {name for _, _, names in told for name in names}  # a process with few rows has taken no gradients
    gradients = {
        name: own.sensitivities.get(name) or _no_gradients(own, name) for name in own.moments if name in graded
    }
    own = replace(own, sensitivities=gradients)
    first = _summed(_first(own), group)
    rows, batches = first["all", "rows"].tolist()
    common = {key: _count_and_mean(total) for key, total in first.items() if key[0] in ("moments", "activations")}
    second = _summed(_second(own, common), group)
    return Statistics(
        {name: Moments(*common["moments", name], _whole(second["moments", name])) for name in own.moments},
        int(rows),
        int(batches),
        {name: _sensitivity(first["sensitivities", name]) for name in own.sensitivities},
        {name: Moments(*common["activations", name], second["activations", name]) for name in own.activations},
        _traffic(own.traffic, group),
        own.origin,
        shares,
    )


def _first(own: Statistics) -> _Named:
    sums: _Named = {("all", "rows"): _numbers(own.rows, own.batches)}
    for kind, name, part in _means(own):
        sums[kind, name] = torch.cat([_numbers(part.count), part.mean * part.count])
    for name, found in own.sensitivities.items():
        sums["sensitivities", name] = torch.cat([_numbers(found.rows), _half(found.gradient), _half(found.consumer)])
    return sums


def _second(own: Statistics, common: Mapping[tuple[str, str], tuple[int, Tensor]]) -> _Named:
    sums: _Named = {}
    for kind, name, part in _means(own):
        scatter = part.scatter + part.outer(part.mean - common[kind, name][1]) * part.count
        sums[kind, name] = scatter if kind == "activations" else _half(scatter)
    return sums


def _means(own: Statistics) -> list[tuple[str, str, Moments]]:
    moments = [("moments", name, part) for name, part in own.moments.items()]
    return [*moments, *(("activations", name, part) for name, part in own.activations.items())]


def _summed(parts: _Named, group: Group) -> _Named:
    """Every tensor's sum over all processes, in one go."""
    if not parts:
        return {}
    keys = sorted(parts)
    total = add_up(torch.cat([parts[key] for key in keys]), group)
    return dict(zip(keys, torch.split(total, [len(parts[key]) for key in keys]), strict=True))


def _traffic(own: Mapping[str, Traffic], group: Group) -> dict[str, Traffic]:
    """Table by table, since these may be large; tables of one joint table share their counts."""
    made: dict[int, Traffic] = {}
    for name in sorted(own):
        key = id(own[name])
        if key not in made:
            made[key] = Traffic(add_up(own[name].counts.clone(), group), own[name].pooled)
    return {name: made[id(traffic)] for name, traffic in own.items()}


def _no_gradients(own: Statistics, name: str) -> Sensitivity:
    nothing = Moments.empty(own.moments[name].width).scatter
    return Sensitivity(0, nothing, nothing)


def _count_and_mean(total: Tensor) -> tuple[int, Tensor]:
    count, sums = int(total[0]), total[1:]
    return count, sums / count if count > 0 else torch.zeros_like(sums)


def _sensitivity(total: Tensor) -> Sensitivity:
    gradient, consumer = total[1:].chunk(2)
    return Sensitivity(int(total[0]), _whole(gradient), _whole(consumer))


def _half(matrix: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns]


def _whole(half: Tensor) -> Tensor:
    """A symmetric matrix from its half of n (n + 1) / 2 numbers."""
    width = int((2 * len(half)) ** 0.5)
    rows, columns = torch.triu_indices(width, width)
    matrix = half.new_empty((width, width))
    matrix[rows, columns] = matrix[columns, rows] = half
    return matrix


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
