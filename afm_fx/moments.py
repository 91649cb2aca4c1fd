"""Moments of features over rows: count, mean and scatter, batch-mergeable.

A batch's scatter is taken about the batch's own mean and merged by the pairwise rule of Chan, Golub and LeVeque
(1979): with ``d`` the difference of the means, ``S = S_1 + S_2 + d d^T N_1 N_2 / (N_1 + N_2)``. The raw second moment
minus ``m m^T`` would cancel where the mean is large against the spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afm_fx.errors import CalibrationError

LEAF_WIDTH = 100
"""Width up to which a Gram matrix is one plain product."""

NARROW_WIDTH = 64
"""Width up to which products are always float64: they cost nothing there."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of rows of n features, in float64.

    Attributes:
        count: number N of rows, not whole where rows have weights.
        mean: [n].
        scatter: [n, n], the sum of ``(y - mean)(y - mean)^T``.
    """

    count: float
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def empty(width: int) -> Moments:
        """The moments of no rows."""
        return Moments(0, torch.zeros(width, dtype=torch.float64), torch.zeros((width, width), dtype=torch.float64))

    @staticmethod
    def of(rows: Tensor, product_dtype: torch.dtype = torch.float64) -> Moments:
        """The moments of a batch.

        Args:
            rows: [N, n].
            product_dtype: float64, or float32 to take the (centred) products of a batch in float32 with a relative
                error of about 1e-7; sums over batches are float64 in any case.
        """
        running = RunningMoments(rows.shape[1])
        running.add(rows, product_dtype)
        return running.result()

    @property
    def width(self) -> int:
        """Number n of features."""
        return int(self.mean.shape[0])

    @property
    def covariance(self) -> Tensor:
        """[n, n], the scatter divided by N.

        Raises:
            CalibrationError: no rows were seen.
        """
        if self.count == 0:
            raise CalibrationError("moments of no rows have no covariance")
        return self.scatter / self.count

    @property
    def second_moment(self) -> Tensor:
        """[n, n], the mean of ``y y^T``."""
        return self.covariance + torch.outer(self.mean, self.mean)

    def part(self, columns: Tensor) -> Moments:
        """The moments of some of the features, those at the positions ``columns`` (int64)."""
        return Moments(self.count, self.mean[columns], self.scatter[columns][:, columns].contiguous())

    def scaled(self, factor: float) -> Moments:
        """The moments with every row counted ``factor`` times."""
        return Moments(self.count * factor, self.mean, self.scatter * factor)

    def __add__(self, other: Moments) -> Moments:
        if self.width != other.width:
            raise CalibrationError(f"moments of {self.width} and of {other.width} features cannot be merged")
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        between = torch.outer(difference, difference) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)


@dataclass(frozen=True)
class Spread:
    """Count, mean and variance of rows of n features, each feature for itself, in float64; mergeable with ``+``.

    Attributes:
        count: number N of rows, not whole where rows have weights.
        mean: [n].
        squares: [n], the sum of squared distances to the mean.
    """

    count: float
    mean: Tensor
    squares: Tensor

    @staticmethod
    def empty(width: int) -> Spread:
        """The spread of no rows."""
        return Spread(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    @staticmethod
    def of(rows: Tensor) -> Spread:
        """The spread of a batch [N, n], within the batch in the rows' own number format."""
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        return Spread(rows.shape[0], mean.cpu().to(torch.float64), variance.cpu().to(torch.float64) * rows.shape[0])

    @property
    def variance(self) -> Tensor:
        """[n], the squares divided by N."""
        return self.squares / self.count if self.count > 0 else self.squares

    def scaled(self, factor: float) -> Spread:
        """The spread with every row counted ``factor`` times."""
        return Spread(self.count * factor, self.mean, self.squares * factor)

    def __add__(self, other: Spread) -> Spread:
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        difference = other.mean - self.mean
        between = difference.square() * (self.count * other.count / count)
        return Spread(count, self.mean + difference * (other.count / count), self.squares + other.squares + between)


class RunningMoments:
    """Moments that batches are added to in place.

    Args:
        width: number n of features.
    """

    def __init__(self, width: int) -> None:
        empty = Moments.empty(width)
        self._count, self._mean, self._scatter = 0, empty.mean, empty.scatter

    def add(self, rows: Tensor, product_dtype: torch.dtype) -> bool:
        """Adds a batch.

        Args:
            rows: [N, n].
            product_dtype: see :meth:`Moments.of`.

        Returns:
            Whether all of its features are finite; the moments are of no use otherwise.
        """
        count = rows.shape[0]
        if count == 0:
            return True
        rows = rows.to(product_dtype)
        centre = rows.mean(dim=0)
        centred = rows - centre
        slip = centred.mean(dim=0).to(torch.float64)
        products = gram(centred)
        mean = (centre.to(torch.float64) + slip).cpu()
        total = self._count + count
        difference = mean - self._mean
        self._scatter += products.cpu()
        slip = slip.cpu()
        self._scatter.addr_(slip, slip, alpha=-count)
        self._scatter.addr_(difference, difference, alpha=self._count * count / total)
        self._mean = self._mean + difference * (count / total)
        self._count = total
        return bool(mean.isfinite().all() and products.isfinite().all())

    def result(self) -> Moments:
        """The moments of all rows added."""
        return Moments(self._count, self._mean.clone(), self._scatter.clone())


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
