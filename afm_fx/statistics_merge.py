"""Merges statistics of disjoint rows exactly, all at once: two sums, whatever the number of parts.

The first sum is of counts and of count times mean, which gives the counts ``N`` and means ``m`` of all rows. The second
is of scatters about that common mean: with a part's own count ``N_r``, mean ``m_r`` and scatter ``S_r``,

    S = sum_r  S_r + N_r (m_r - m)(m_r - m)^T.

Everything is float64 and added in the order of the parts, and nothing cancels: a part's scatter is about its own mean,
and ``m_r - m`` is small where the parts are alike. Of symmetric matrices one half is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from afm_fx.errors import CalibrationError
from afm_fx.moments import Moments, Spread
from afm_fx.process_groups import Group, add_up, died
from afm_fx.row_sample import RowSample
from afm_fx.sensitivity import Sensitivity
from afm_fx.statistics import Statistics
from afm_fx.traffic import Traffic

ROWS = "rows and batches"
"""What the two numbers that belong to no site go under."""


def merged(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of the rows of all parts, as :func:`merged_over` gives them.

    Raises:
        CalibrationError: there are none, or they are of different models.
    """
    if not parts:
        raise CalibrationError("there are no statistics to merge")
    first, *rest = parts
    for other in rest:
        if layout_of(other) != layout_of(first):
            raise CalibrationError("statistics of different models cannot be merged")
    samples = [part.sample for part in parts if part.sample is not None]
    totals = _added(map(first_sums, parts))
    scatters = _added(second_sums(part, totals) for part in parts)
    counts = {name: _added(part.traffic[name].counts for part in parts) for name in first.traffic}
    return _read(first, totals, scatters, counts, _smallest(samples))


def merged_over(group: Group, own: Statistics) -> Statistics:
    """The statistics of the rows of all processes, the same in each; all must call, with statistics of one layout.

    Raises:
        OtherProcessError: a process died.
    """
    totals = add_up(first_sums(own), group)
    scatters = add_up(second_sums(own, totals), group)
    counts: dict[str, Tensor] = {}
    sums: dict[int, Tensor] = {}
    for name, traffic in own.traffic.items():  # tables of one joint table share their counts
        if id(traffic) not in sums:
            sums[id(traffic)] = add_up(traffic.counts.clone(), group)
        counts[name] = sums[id(traffic)]
    return _read(own, totals, scatters, counts, _sample_over(group, own.sample))


def layout_of(statistics: Statistics) -> dict[str, Any]:
    """What must be alike for statistics to be merged: sites and their widths."""
    return {
        "sites": {name: moments.width for name, moments in statistics.moments.items()},
        "gradients": {name: len(found.gradient) for name, found in statistics.sensitivities.items()},
        "activations": {name: len(spread.mean) for name, spread in statistics.activations.items()},
        "tables": {name: traffic.rows for name, traffic in statistics.traffic.items()},
    }


def sent_bytes(statistics: Statistics) -> dict[str, int]:
    """Bytes that each process puts into the sums, by site; the row sample is not among them."""
    found: dict[str, int] = {}
    both = (*_first(statistics), *_second(statistics, lambda _: (1.0, torch.zeros(()))))
    seen: set[int] = set()
    for name, tensor in both:
        found[name] = found.get(name, 0) + tensor.numel() * tensor.element_size()
    for name, traffic in statistics.traffic.items():
        if id(traffic) not in seen:
            seen.add(id(traffic))
            found[name] = found.get(name, 0) + traffic.counts.numel() * traffic.counts.element_size()
    return found


def first_sums(statistics: Statistics) -> Tensor:
    """What the first sum is over, as one vector."""
    return torch.cat([tensor for _, tensor in _first(statistics)])


def second_sums(statistics: Statistics, totals: Tensor) -> Tensor:
    """What the second sum is over, given the first."""
    reader = _Reader(totals)
    reader.take(2)
    pieces = [tensor for _, tensor in _second(statistics, lambda width: _count_and_mean(reader, width))]
    return torch.cat([*pieces, torch.zeros(0, dtype=torch.float64)])


def _first(statistics: Statistics) -> Iterator[tuple[str, Tensor]]:
    yield ROWS, _numbers(statistics.rows, statistics.batches)
    for name, own in _means(statistics):
        yield name, torch.cat([_numbers(own.count), own.mean * own.count])
    for name, found in statistics.sensitivities.items():
        yield name, torch.cat([_numbers(found.rows), _half(found.gradient), _half(found.consumer)])


def _second(statistics: Statistics, common: Callable[[int], tuple[float, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, own in _means(statistics):
        _, mean = common(len(own.mean))
        away = own.mean - mean
        if isinstance(own, Moments):
            yield name, _half(own.scatter + torch.outer(away, away) * own.count)
        else:
            yield name, own.squares + away.square() * own.count


def _means(statistics: Statistics) -> Iterator[tuple[str, Moments | Spread]]:
    yield from statistics.moments.items()
    yield from statistics.activations.items()


def _read(
    form: Statistics, totals: Tensor, scatters: Tensor, counts: Mapping[str, Tensor], sample: RowSample | None
) -> Statistics:
    """Statistics from the sums, in the form of one of the parts."""
    first, second = _Reader(totals), _Reader(scatters)
    rows, batches = first.take(2).tolist()
    moments, activations = {}, {}
    for name, own in form.moments.items():
        count, mean = _count_and_mean(first, own.width)
        moments[name] = Moments(count, mean, second.whole(own.width))
    for name, spread in form.activations.items():
        count, mean = _count_and_mean(first, len(spread.mean))
        activations[name] = Spread(count, mean, second.take(len(mean)))
    sensitivities = {}
    for name, found in form.sensitivities.items():
        number, width = _plain(float(first.take(1))), len(found.gradient)
        sensitivities[name] = Sensitivity(number, first.whole(width), first.whole(width))
    made: dict[int, Traffic] = {}
    for name, own_traffic in form.traffic.items():
        made.setdefault(id(own_traffic), Traffic(counts[name], own_traffic.pooled))
    traffic = {name: made[id(own_traffic)] for name, own_traffic in form.traffic.items()}
    return Statistics(moments, _plain(rows), int(batches), sensitivities, activations, traffic, sample)


def _count_and_mean(reader: _Reader, width: int) -> tuple[float, Tensor]:
    count = _plain(float(reader.take(1)))
    total = reader.take(width)
    return count, total / count if count > 0 else torch.zeros_like(total)


def _sample_over(group: Group, own: RowSample | None) -> RowSample | None:
    """The rows of the smallest keys of all processes; only rows that are among them are sent."""
    world = dist.get_world_size(group)
    try:
        keys: list[Any] = [None] * world
        dist.all_gather_object(keys, None if own is None else (own.limit, own.keys), group=group)
        known = [each for each in keys if each is not None]
        if not known:
            return None
        limit = known[0][0]
        together = torch.cat([each for _, each in known])
        largest = float(together.sort().values[:limit][-1]) if len(together) else 0.0
        samples: list[Any] = [None] * world
        dist.all_gather_object(samples, None if own is None else own.up_to(largest), group=group)
    except RuntimeError as error:
        raise died(error) from error
    return _smallest([each for each in samples if each is not None])


def _smallest(samples: Sequence[RowSample]) -> RowSample | None:
    if not samples:
        return None
    first, *rest = samples
    for other in rest:
        first = first + other
    return first.in_order_of_keys()


class _Reader:
    """Takes a vector apart, from its beginning."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._at = values, 0

    def take(self, count: int) -> Tensor:
        """The next ``count`` numbers."""
        self._at += count
        return self._values[self._at - count : self._at].clone()

    def whole(self, width: int) -> Tensor:
        """A symmetric matrix from its half."""
        rows, columns = torch.triu_indices(width, width)
        matrix = torch.empty((width, width), dtype=self._values.dtype)
        matrix[rows, columns] = matrix[columns, rows] = self.take(len(rows))
        return matrix


def _plain(number: float) -> float:
    """A number of rows as calibration counts them: an integer where it is whole."""
    return int(number) if number.is_integer() else number


def _half(matrix: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns]


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _added(tensors: Any) -> Tensor:
    first, *rest = list(tensors)
    total: Tensor = first.clone()
    for other in rest:
        total += other
    return total
