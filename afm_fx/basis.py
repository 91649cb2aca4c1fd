"""Bases: encoders and decoders that keep most of what matters of a site's features.

AFM (Yu et al., KDD 2024, arXiv 2405.18146; "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!",
AAAI 2023) takes the top eigenvectors of the features' covariance on real rows. Factoring the weights themselves is
the classical alternative: for a table the eigenvectors of ``T^T T``, for a Linear those of ``W W^T``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from passes.factor import ROWS_PER_BLOCK, Factor, factor_of
from passes.sites import SiteKind


class BasisKind(StrEnum):
    """Where a basis comes from."""

    AFM = "afm"
    WEIGHT_SVD = "weight_svd"


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of a site's features, best first.

    Attributes:
        vectors: [n, n], columns.
        spectrum: [n], mean squared feature error on the calibration rows that each column saves.
        centre: [n], or None for an uncentred basis.
        discarded: [n + 1], mean squared error on the calibration rows when the first r columns are kept.
    """

    vectors: Tensor
    spectrum: Tensor
    centre: Tensor | None
    discarded: Tensor

    @property
    def width(self) -> int:
        """Number n of features."""
        return int(self.vectors.shape[0])

    def factor(self, rank: int) -> Factor:
        """The factor of the best ``rank`` columns."""
        decoder = self.vectors[:, :rank].contiguous()
        return factor_of(decoder.mT.contiguous(), decoder, self.centre)

    def kept_energy(self, rank: int) -> float:
        """The share of the features' energy about the centre that ``rank`` columns keep."""
        total = float(self.discarded[0])
        return 1.0 if total <= 0 else 1.0 - float(self.discarded[rank]) / total


def eigenbasis(metric: Tensor, covariance: Tensor, centre: Tensor | None) -> Basis:
    """The eigenvectors of a symmetric matrix, best first, with their errors on the calibration rows.

    Args:
        metric: [n, n], the matrix whose eigenvectors are taken.
        covariance: [n, n], of the calibration rows about the centre.
        centre: [n], or None for an uncentred basis (``covariance`` is then the raw second moment).
    """
    _, vectors = torch.linalg.eigh((metric + metric.mT) / 2)
    vectors = _with_fixed_signs(vectors.flip(-1))
    spectrum = ((covariance @ vectors) * vectors).sum(dim=0).clamp_min(0.0)
    discarded = torch.cat([spectrum.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=spectrum.dtype)])
    return Basis(vectors, spectrum, centre, discarded)


def _with_fixed_signs(vectors: Tensor) -> Tensor:
    """Columns whose largest entry is positive, so that equal input gives equal bases everywhere."""
    largest = vectors.abs().argmax(dim=0)
    signs = torch.sign(vectors[largest, torch.arange(vectors.shape[1])])
    return vectors * torch.where(signs == 0, torch.ones_like(signs), signs)


def weight_second_moment(weight: Tensor, kind: SiteKind) -> Tensor:
    """[n, n] in float64: the mean of ``T_v T_v^T`` over a table's rows, or ``W W^T`` of a Linear."""
    if kind is SiteKind.LINEAR:
        wide = weight.detach().to(torch.float64)
        return (wide @ wide.mT).cpu()
    total = torch.zeros((weight.shape[1], weight.shape[1]), dtype=torch.float64, device=weight.device)
    for start in range(0, weight.shape[0], ROWS_PER_BLOCK):
        block = weight.detach()[start : start + ROWS_PER_BLOCK].to(torch.float64)
        total += block.mT @ block
    return (total / max(weight.shape[0], 1)).cpu()
