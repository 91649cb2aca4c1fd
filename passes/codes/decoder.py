"""Decoders: what turns the code of a block into its features, ``y = A z + o + g u``.

``z`` are the block's columns of the code, ``u`` is one scalar per row of the value (its *unit*): a gate scales a
value's offset along with its code, so a gated offset is a constant vector ``g`` times whatever the gates multiplied to.
Everything linear that happens to features happens to the decoder's constants instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Part = tuple[str, int]
"""A part of a code: the site it comes from and the width that part has where the site is left alone."""


@dataclass(frozen=True)
class Decoder:
    """The constants of ``y = A z + o + g u``.

    Attributes:
        key: tells apart the matrices of one graph: equal keys, equal ``A``.
        offset_key: the same for ``o`` and ``g`` together.
        gated_key: the same for ``g`` alone.
        matrix: [width, rank], ``A``; None for the identity.
        offset: [width], ``o``; None for zero.
        gated: [width], ``g``; None for zero.
        terms: the factored parts of the code; what they leave of the rank are plain features.
        parts: the decoders whose matrices stand side by side in this one's, and whose offsets add up to its own.
        completion: the decoder of the features that are left out of orthonormal columns ``[A; A']``, to which offsets
            are orthogonal, so that inner products of features are those of codes less those of the features left out:
            ``|A z + o|^2 = |z|^2 + |[o; o']|^2 - |A' z + o'|^2``. None where there is no such decoder.
        is_diagonal: whether ``A`` is square and diagonal: every feature is its own code times a number.
    """

    width: int
    rank: int
    key: Hashable
    offset_key: Hashable = None
    gated_key: Hashable = None
    matrix: Tensor | None = None
    offset: Tensor | None = None
    gated: Tensor | None = None
    terms: tuple[Part, ...] = ()
    parts: tuple[Decoder, ...] = ()
    completion: Decoder | None = None
    is_diagonal: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether the features are their own code."""
        return self.matrix is None

    @property
    def is_elementwise(self) -> bool:
        """Whether every feature has one code column of its own."""
        return self.is_identity or self.is_diagonal

    @property
    def is_plain(self) -> bool:
        """Whether the code is the features, nothing added."""
        return self.matrix is None and self.offset is None and self.gated is None

    @property
    def orthogonal(self) -> bool:
        """Whether the columns of ``A`` themselves are orthonormal and orthogonal to the offsets."""
        return self.completion is not None and not self.completion.width

    @property
    def sites(self) -> frozenset[str]:
        """The factored sites inside."""
        return frozenset(site for site, _ in self.terms)

    @property
    def constants(self) -> tuple[Hashable, Hashable]:
        """Equal for decoders that decode alike, offsets included."""
        return self.key, self.offset_key

    def same_constants(self, other: Decoder) -> bool:
        """Whether both decode alike, offsets included."""
        return self.constants == other.constants

    def full_matrix(self) -> Tensor:
        """``A`` [width, rank] in float64, the identity written out."""
        return torch.eye(self.width, dtype=torch.float64) if self.matrix is None else self.matrix

    def take(self, rows: Sequence[int]) -> Decoder:
        """The decoder of some features. An identity keeps only their columns."""
        index = list(rows)
        if index == list(range(self.width)):
            return self
        offset = None if self.offset is None else self.offset[index]
        gated = None if self.gated is None else self.gated[index]
        offset_key = _rows_or_none(self.offset_key, index)
        if self.matrix is None:
            kept = replace(identity(len(index)), offset_key=offset_key, offset=offset, gated=gated)
            return replace(kept, gated_key=_rows_or_none(self.gated_key, index), completion=self._completed())
        if self.is_diagonal:
            return replace(
                self,
                width=len(index),
                rank=len(index),
                key=_rows_key(self.key, tuple(index)),
                offset_key=offset_key,
                gated_key=_rows_or_none(self.gated_key, index),
                matrix=self.matrix[index][:, index],
                offset=offset,
                gated=gated,
            )
        return replace(
            self,
            width=len(index),
            key=_rows_key(self.key, tuple(index)),
            offset_key=offset_key,
            gated_key=_rows_or_none(self.gated_key, index),
            matrix=self.matrix[index],
            offset=offset,
            gated=gated,
            terms=tuple((site, min(width, len(index))) for site, width in self.terms),
            parts=(),
            completion=self._without(index),
        )

    def _without(self, rows: Sequence[int]) -> Decoder | None:
        """What completes some of the features, in ascending order, of orthonormal columns: the others."""
        rest = sorted(set(range(self.width)) - set(rows))
        if not self.orthogonal or self.gated is not None or len(rest) + len(rows) != self.width:
            return None
        return replace(self, completion=None).take(rest) if rest and self.rank else self.completion

    def _completed(self) -> Decoder | None:
        """The completion where the columns need none: of a change that is not made to the features left out."""
        return self.completion if self.orthogonal else None

    def shifted(self, constant: Tensor, key: Hashable) -> Decoder:
        """``y + c`` for a constant [width]."""
        offset = constant if self.offset is None else self.offset + constant
        return replace(self, offset=offset, offset_key=("shift", self.offset_key, key), parts=(), completion=None)

    def offsets_scaled(self, factor: float) -> Decoder:
        """The same matrix with offsets times a number: what scaling does once the code itself was scaled."""
        if self.offset_key is None:
            return self
        return replace(
            self,
            offset_key=("scale", self.offset_key, factor),
            gated_key=None if self.gated_key is None else ("scale", self.gated_key, factor),
            parts=(),
            completion=self.completion and self.completion.offsets_scaled(factor),
            offset=None if self.offset is None else self.offset * factor,
            gated=None if self.gated is None else self.gated * factor,
        )

    def offset_scaled(self, factor: float) -> Decoder:
        """The same with the constant offset alone times a number."""
        if self.offset is None:
            return self
        key, rest = ("times", self.offset_key, factor), self.completion
        completion = rest and rest.offset_scaled(factor)
        return replace(self, offset=self.offset * factor, offset_key=key, parts=(), completion=completion)

    def plus_offsets(self, other: Decoder) -> Decoder:
        """``A (z + z') + (o + o') + ...`` of two decoders with one matrix, and one gated vector where both have it."""
        offsets = [each.offset for each in (self, other) if each.offset is not None]
        gated = self if self.gated is not None else other
        return replace(
            self,
            offset=sum(offsets[1:], offsets[0]) if offsets else None,
            gated=gated.gated,
            offset_key=("plus", self.offset_key, other.offset_key),
            gated_key=gated.gated_key,
            parts=(),
            completion=self.completion and other.completion and self.completion.plus_offsets(other.completion),
        )

    def gated_offset(self) -> Decoder:
        """The constant offset as one that is multiplied by a unit (where there is no gated one yet)."""
        if self.offset is None:
            return self
        key = ("gate", self.offset_key)
        return replace(
            self,
            offset=None,
            gated=self.offset,
            offset_key=key,
            gated_key=key,
            parts=(),
            completion=self._completed(),
        )

    def mapped(self, weight: Tensor, key: Hashable) -> Decoder:
        """``W y`` for a constant W [k, width]."""
        return replace(
            self,
            width=int(weight.shape[0]),
            key=("map", key, self.key),
            offset_key=None if self.offset_key is None else ("map", key, self.offset_key),
            gated_key=None if self.gated_key is None else ("map", key, self.gated_key),
            matrix=weight @ self.full_matrix(),
            offset=None if self.offset is None else weight @ self.offset,
            gated=None if self.gated is None else weight @ self.gated,
            parts=(),
            completion=None,
            is_diagonal=False,
        )

    def scaled_by(self, vector: Tensor, key: Hashable) -> Decoder:
        """``v * y`` for a constant v [width]."""
        return replace(
            self.mapped(torch.diag(vector), key),
            matrix=torch.diag(vector) if self.matrix is None else vector.unsqueeze(1) * self.matrix,
            is_diagonal=self.is_elementwise,
        )

    def gated_as_column(self) -> Decoder:
        """``[A, g] [z; u] + o``: the gated offset as one more column of the matrix."""
        if self.gated is None:
            return self
        return replace(
            self,
            rank=self.rank + 1,
            key=("column", self.key, self.gated_key),
            offset_key=None if self.offset is None else ("without gated", self.offset_key),
            gated_key=None,
            matrix=torch.cat([self.full_matrix(), self.gated.unsqueeze(1)], dim=1),
            gated=None,
            parts=(),
            completion=None,
            is_diagonal=False,
        )

    def beside(self, other: Decoder) -> Decoder:
        """``y + y'`` of two codes side by side (at most one of them with a gated offset)."""
        offsets = [each.offset for each in (self, other) if each.offset is not None]
        return replace(
            self,
            rank=self.rank + other.rank,
            key=("beside", self.key, other.key),
            offset_key=("beside", self.offset_key, other.offset_key),
            matrix=torch.cat([self.full_matrix(), other.full_matrix()], dim=1),
            offset=sum(offsets[1:], offsets[0]) if offsets else None,
            gated=self.gated if other.gated is None else other.gated,
            gated_key=self.gated_key if other.gated is None else other.gated_key,
            terms=(*self.terms, *other.terms),
            parts=(*(self.parts or (self,)), *(other.parts or (other,))),
            completion=None,
            is_diagonal=False,
        )


NO_FEATURES = Decoder(0, 0, ("no features",))
"""What completes columns that are orthonormal."""


def identity(width: int) -> Decoder:
    """The decoder of features that are their own code."""
    return Decoder(width, width, ("identity", width), completion=NO_FEATURES)


def _rows_key(key: Hashable, rows: tuple[int, ...]) -> Hashable:
    """The key of some rows; rows of rows are rows."""
    if isinstance(key, tuple) and key and key[0] == "rows":
        return ("rows", key[1], tuple(key[2][row] for row in rows))
    return ("rows", key, rows)


def _rows_or_none(key: Hashable, rows: Sequence[int]) -> Hashable:
    return None if key is None else _rows_key(key, tuple(rows))
