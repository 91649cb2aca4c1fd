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

NARROW_WIDTH = 64
"""Width up to which products are always float64: they cost nothing there."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of rows of n features, in float64.

    Attributes:
        count: number N of rows.
        mean: [n].
        scatter: [n, n], the sum of ``(y - mean)(y - mean)^T``.
    """

    count: int
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
        count, width = rows.shape
        if count == 0:
            return Moments.empty(width)
        rows = rows.to(product_dtype)
        centre = rows.mean(dim=0)
        centred = rows - centre
        slip = centred.mean(dim=0).to(torch.float64)
        scatter = gram(centred).to(torch.float64) - count * torch.outer(slip, slip)
        return Moments(count, (centre.to(torch.float64) + slip).cpu(), scatter.cpu())

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


def gram(rows: Tensor) -> Tensor:
    """``rows^T rows`` [n, n] of rows [N, n].

    Wide ones on the CPU by numpy, which knows the product of a matrix with its own transpose (BLAS ``syrk``) and
    computes only one of the two mirrored halves.
    """
    if rows.device.type != "cpu" or rows.shape[1] <= NARROW_WIDTH:
        return rows.mT @ rows
    array = rows.detach().numpy()
    return torch.from_numpy(array.T @ array)
