"""Bases: encoders and decoders that keep most of what matters of a site's features.

AFM (Yu et al., KDD 2024, arXiv 2405.18146; "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!",
AAAI 2023) takes the top eigenvectors of the features' covariance ``C`` on real rows. Factoring the weights themselves
is the classical alternative: for a table the eigenvectors of ``T^T T``, for a Linear those of ``W W^T``.

With a metric ``M`` (what an error in the features costs downstream, :mod:`afm_fx.calibration.sensitivity`), the best
code of rank r comes from the top eigenvectors ``P`` of ``S C S``, ``S = M^1/2``, with eigenvalues ``L``: the encoder is
``P^T S``, and the features' regression on their code, ``C S P L^-1``, is the decoder. It is brought to orthonormal
columns by ``A = Q R, B := R B``. The discarded eigenvalues are the mean squared error in that metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afm_fx.calibration import table_moments
from passes.codes import Factor, factor_of
from passes.sites import SiteKind

RIDGE = 1e-7
"""Share of the identity mixed into a metric, so that what it does not see is still described."""

NEGLIGIBLE = 1e-13
"""Eigenvalues below this share of the largest are rounding."""


@dataclass(frozen=True)
class Basis:
    """Codes of every rank for a site's features, best column first.

    Attributes:
        vectors: [n, k], orthonormal columns of the decoder.
        encoder: [k, n].
        mixing: [k, k], upper triangular: the encoder of rank r is ``mixing[:r, :r] @ encoder[:r]``; None for the
            identity.
        centre: [n], or None for an uncentred basis.
        discarded: [k + 1], mean squared feature error on the calibration rows at every rank.
    """

    vectors: Tensor
    encoder: Tensor
    mixing: Tensor | None
    centre: Tensor | None
    discarded: Tensor

    @property
    def width(self) -> int:
        """Number n of features."""
        return int(self.vectors.shape[0])

    @property
    def highest_rank(self) -> int:
        """The rank k past which there is nothing left to describe."""
        return int(self.vectors.shape[1])

    def factor(self, rank: int) -> Factor:
        """The factor of the best ``rank`` columns (of all there are, if those are fewer, and zeros)."""
        taken = min(rank, self.highest_rank)
        encoder, decoder = self.encoder[:taken], self.vectors[:, :taken].contiguous()
        if self.mixing is not None:
            encoder = self.mixing[:taken, :taken] @ encoder
        if taken < rank:
            decoder = torch.cat([decoder, _complement(decoder, rank - taken)], dim=1)
            encoder = torch.cat([encoder, encoder.new_zeros((rank - taken, self.width))])
        return factor_of(encoder.contiguous(), decoder, self.centre)

    def error(self, rank: int) -> float:
        """The mean squared feature error at a rank on the calibration rows."""
        return float(self.discarded[min(rank, self.highest_rank)])

    def kept_energy(self, rank: int) -> float:
        """The share of the features' energy about the centre that ``rank`` columns keep."""
        total = float(self.discarded[0])
        return 1.0 if total <= 0 else 1.0 - self.error(rank) / total


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
    return Basis(vectors, vectors.mT.contiguous(), None, centre, discarded)


def metric_basis(metric: Tensor, covariance: Tensor, seen: Tensor, centre: Tensor | None) -> Basis:
    """The basis with the smallest error in a metric.

    Args:
        metric: [n, n], positive semidefinite, of any scale.
        covariance: [n, n], that the features are taken to have about the centre.
        seen: [n, n], that of the calibration rows, on which errors are counted (the same, or what was shrunk to it).
        centre: [n], or None for an uncentred basis (both are then raw second moments).
    """
    width = covariance.shape[0]
    root = _square_root(scaled(metric, covariance) + RIDGE * torch.eye(width, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(root @ covariance @ root)
    values, vectors = values.flip(0), vectors.flip(-1)
    rank = max(int((values > NEGLIGIBLE * values[0]).sum()), 1)
    if values[0] <= 0:
        return eigenbasis(covariance, seen, centre)
    encoder = vectors[:, :rank].mT @ root
    decoder, mixing = torch.linalg.qr(covariance @ encoder.mT / values[:rank])
    signs = _signs(decoder)
    decoder, mixing = decoder * signs, mixing * signs[:, None]
    return Basis(decoder, encoder, mixing, centre, _discarded(decoder, encoder, mixing, seen))


def scaled(metric: Tensor, covariance: Tensor) -> Tensor:
    """The metric in the scale in which the covariance's features cost what they cost in the identity."""
    cost = (metric * covariance).sum()
    return (metric + metric.mT) / 2 * (covariance.trace() / cost if cost > 0 else torch.zeros(()))


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.mT
    return root


def _discarded(decoder: Tensor, encoder: Tensor, mixing: Tensor, covariance: Tensor) -> Tensor:
    """``tr C - 2 tr(A R B C) + tr(R B C B^T R^T)`` at every rank: sums over leading blocks, for R is triangular."""
    seen = encoder @ covariance
    told = _leading_sums(mixing * (seen @ decoder).mT)
    kept = _leading_sums((mixing.mT @ mixing) * (seen @ encoder.mT))
    discarded: Tensor = covariance.trace() - 2 * told + kept
    return discarded.clamp_min(0.0)


def _leading_sums(matrix: Tensor) -> Tensor:
    """The sum of the leading r x r block for r = 0 .. k."""
    sums = matrix.cumsum(0).cumsum(1).diagonal()
    return torch.cat([sums.new_zeros(1), sums])


def _complement(columns: Tensor, count: int) -> Tensor:
    """Orthonormal columns that are orthogonal to given orthonormal ones."""
    width, taken = columns.shape
    full: Tensor = torch.linalg.qr(torch.cat([columns, torch.eye(width, dtype=columns.dtype)], dim=1))[0]
    return full[:, taken : taken + count]


def _with_fixed_signs(vectors: Tensor) -> Tensor:
    """Columns whose largest entry is positive, so that equal input gives equal bases everywhere."""
    fixed: Tensor = vectors * _signs(vectors)
    return fixed


def _signs(vectors: Tensor) -> Tensor:
    largest = vectors.abs().argmax(dim=0)
    signs = torch.sign(vectors[largest, torch.arange(vectors.shape[1])])
    return torch.where(signs == 0, torch.ones_like(signs), signs)


def weight_second_moment(weights: Sequence[Tensor], kind: SiteKind) -> Tensor:
    """[n, n] in float64: the mean of ``T_v T_v^T`` over a table's rows, or ``W W^T`` of a Linear.

    Args:
        weights: the weight; of a joint table, its tables [V, n_i], which are not copied.
    """
    if kind is SiteKind.LINEAR:
        wide = weights[0].detach().to(torch.float64)
        return (wide @ wide.mT).cpu()
    return table_moments(weights, torch.ones(weights[0].shape[0])).second_moment()
