"""Moments of features over rows: count, mean and scatter, batch-mergeable.

A batch's scatter is taken about the batch's own mean and merged by the pairwise rule of Chan, Golub and LeVeque
(1979): with ``d`` the difference of the means, ``S = S_1 + S_2 + d d^T N_1 N_2 / (N_1 + N_2)``. The raw second moment
minus ``m m^T`` would cancel where the mean is large against the spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afm_fx.errors import CalibrationError
from passes.codes import ROWS_PER_BLOCK

LEAF_WIDTH = 100
"""Width up to which a Gram matrix is one plain product."""

NARROW_WIDTH = 64
"""Width up to which products are always float64: they cost nothing there."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of rows of n features, in float64; mergeable with ``+``.

    Attributes:
        count: number N of rows, not whole where rows have weights.
        mean: [n].
        scatter: [n, n], the sum of ``(y - mean)(y - mean)^T``, or only its diagonal, [n].
    """

    count: float
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def empty(width: int, *, diagonal: bool = False) -> Moments:
        """The moments of no rows."""
        shape = (width,) if diagonal else (width, width)
        return Moments(0, torch.zeros(width, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64))

    @staticmethod
    def of(rows: Tensor, product_dtype: torch.dtype = torch.float64) -> Moments:
        """The moments of a batch.

        Args:
            rows: [N, n].
            product_dtype: float64, or float32 to take the (centred) products of a batch in float32 with a relative
                error of about 1e-7; sums over batches are float64 in any case.
        """
        count = rows.shape[0]
        if count == 0:
            return Moments.empty(rows.shape[1])
        rows = rows.to(product_dtype)
        centre = rows.mean(dim=0)
        centred = rows - centre
        slip = centred.mean(dim=0).to(torch.float64).cpu()  # what rounding left of the mean
        scatter = gram(centred).to(torch.float64).cpu().addr(slip, slip, alpha=-count)
        return Moments(count, centre.to(torch.float64).cpu() + slip, scatter)

    @staticmethod
    def diagonal_of(rows: Tensor) -> Moments:
        """The moments of a batch [N, n] without products of features, within it in the rows' own number format."""
        variance, mean = (each.cpu().to(torch.float64) for each in torch.var_mean(rows, dim=0, correction=0))
        return Moments(rows.shape[0], mean, variance * rows.shape[0])

    @property
    def width(self) -> int:
        """Number n of features."""
        return int(self.mean.shape[0])

    @property
    def covariance(self) -> Tensor:
        """The scatter divided by N.

        Raises:
            CalibrationError: no rows were seen.
        """
        if self.count == 0:
            raise CalibrationError("moments of no rows have no covariance")
        return self.scatter / self.count

    def second_moment(self, centre: Tensor | None = None) -> Tensor:
        """[n, n], the mean of ``(y - c)(y - c)^T`` about a centre, zero where left out."""
        distance = self.mean if centre is None else self.mean - centre
        return self.covariance + torch.outer(distance, distance)

    @property
    def is_finite(self) -> bool:
        """Whether they are those of finite features, not too large to be squared."""
        return bool(self.mean.isfinite().all() and self.scatter.isfinite().all())

    def part(self, columns: Tensor) -> Moments:
        """The moments of some of the features, those at the positions ``columns`` (int64)."""
        return Moments(self.count, self.mean[columns], self.scatter[columns][:, columns].contiguous())

    def scaled(self, factor: float) -> Moments:
        """The moments with every row counted ``factor`` times."""
        return Moments(self.count * factor, self.mean, self.scatter * factor)

    def outer(self, difference: Tensor) -> Tensor:
        """``d d^T``, or its diagonal, as the scatter is."""
        return difference.square() if self.scatter.dim() == 1 else torch.outer(difference, difference)

    def __add__(self, other: Moments) -> Moments:
        if self.scatter.shape != other.scatter.shape:
            raise CalibrationError(f"moments of {self.width} and of {other.width} features cannot be merged")
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        difference = other.mean - self.mean
        between = self.outer(difference) * (self.count * other.count / count)
        mean = self.mean + difference * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)


def table_moments(tables: Sequence[Tensor], weights: Tensor) -> Moments:
    """The moments of a table's rows, row ``v`` counted ``w_v`` times, taken block by block.

    With the counts of some traffic as weights these are the moments of the looked up features, exactly: they depend
    on which rows were looked up, not on the order or on the company.

    Args:
        tables: [V, n_i] each, whose features side by side are the site's; they are not copied.
        weights: [V], not negative.
    """
    total = Moments.empty(sum(int(table.shape[1]) for table in tables))
    for start in range(0, weights.shape[0], ROWS_PER_BLOCK):
        given = weights[start : start + ROWS_PER_BLOCK].to(torch.float64)
        taken = given.nonzero().flatten()
        if not len(taken):
            continue
        parts = [table.detach()[start + taken.to(table.device)].to("cpu", torch.float64) for table in tables]
        rows, each = torch.cat(parts, dim=1), given[taken]
        count = each.sum()
        mean = each @ rows / count
        centred = rows - mean
        total = total + Moments(float(count), mean, centred.mT @ (centred * each[:, None]))
    return total


def gram(rows: Tensor) -> Tensor:
    """``rows^T rows`` [n, n] of rows [N, n], each of the two mirrored halves of a wide one computed once.

    One thread on the CPU does that best in numpy, which knows the product of a matrix with its own transpose (BLAS
    ``syrk``). With more, numpy's threads would fight with torch's, and the product is cut into blocks instead.
    """
    width = rows.shape[1]
    if width <= LEAF_WIDTH:
        return rows.mT @ rows
    if rows.device.type == "cpu" and torch.get_num_threads() == 1:
        array = rows.detach().numpy()
        return torch.from_numpy(array.T @ array)
    half = width // 2
    left, right = rows[:, :half], rows[:, half:]
    result = torch.empty((width, width), dtype=rows.dtype, device=rows.device)
    result[:half, :half] = gram(left)
    result[half:, half:] = gram(right)
    cross = left.mT @ right
    result[:half, half:] = cross
    result[half:, :half] = cross.mT
    return result
