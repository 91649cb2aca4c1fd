"""A factor: how one site's features are written in a shorter code.

For features ``y`` in R^n with centre ``m``, an encoder ``B`` (r x n) and an orthonormal decoder ``A`` (n x r)
approximate ``y ~ A B (y - m) + m``. With ``o = (I - A B) m`` the code is ``z = B y + A^T o`` and

    y ~ A z + o_perp,     o_perp = (I - A A^T) o,

so that the offset is orthogonal to the decoder's columns and ``|A z + o_perp|^2 = |z|^2 + |o_perp|^2``.
An uncentred factor (``m = 0``) has no offset and maps zero to zero. At rank 0 the features are the constant ``m``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from passes.codes.table_codes import encode_table


@dataclass(frozen=True)
class Factor:
    """A rank-r description of n features.

    Attributes:
        encoder: [r, n], ``B``.
        decoder: [n, r], ``A``, orthonormal columns.
        shift: [r], ``A^T o``, added to the code; None for an uncentred factor.
        offset: [n], ``o_perp``, added after decoding; None for an uncentred factor.
    """

    encoder: Tensor
    decoder: Tensor
    shift: Tensor | None = None
    offset: Tensor | None = None

    @property
    def width(self) -> int:
        """Number n of features."""
        return int(self.decoder.shape[0])

    @property
    def rank(self) -> int:
        """Number r of code columns."""
        return int(self.decoder.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by the names above."""
        parts = {name: getattr(self, name) for name in ("encoder", "decoder", "shift", "offset")}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def to(self, dtype: torch.dtype) -> Factor:
        """The same factor in another number format."""
        return replace(self, **{name: tensor.to(dtype) for name, tensor in self.tensors().items()})

    def encode(self, features: Tensor) -> Tensor:
        """The codes [..., r] of features [..., n], in the factor's own number format."""
        codes = features @ self.encoder.mT
        return codes if self.shift is None else codes + self.shift

    def encode_table(self, *parts: Tensor) -> Tensor:
        """The codes [V, r] of a table [V, n], in row blocks, in the table's dtype and on its device.

        Args:
            parts: the table, or several [V, n_i] whose columns side by side are the features; they are not joined.
        """
        return encode_table(self.encoder, self.shift, parts)

    def encode_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The Linear (``B W``, ``B b + A^T o``) that produces the codes of a Linear's output, in float64."""
        encoder = self.encoder.to(device=weight.device)
        code_bias = None if bias is None else encoder @ bias.to(torch.float64)
        if self.shift is not None:
            shift = self.shift.to(device=weight.device)
            code_bias = shift if code_bias is None else code_bias + shift
        return encoder @ weight.to(torch.float64), code_bias

    def decode(self, codes: Tensor) -> Tensor:
        """The features [..., n] of codes [..., r]."""
        features = codes @ self.decoder.mT
        return features if self.offset is None else features + self.offset


def factor_of(encoder: Tensor, decoder: Tensor, centre: Tensor | None) -> Factor:
    """Builds a factor from encoder [r, n], orthonormal decoder [n, r] and centre [n] (None: uncentred)."""
    if centre is None:
        return Factor(encoder, decoder)
    offset = centre - decoder @ (encoder @ centre)
    shift = decoder.mT @ offset
    return Factor(encoder, decoder, shift, offset - decoder @ shift)


class BlankFactor(Factor):
    """A factor without meaningful values, for runs that only look at the structure: its codes have no data."""

    def encode_table(self, *parts: Tensor) -> Tensor:
        """The codes' shape [V, r]."""
        return torch.empty((parts[0].shape[0], self.rank), dtype=parts[0].dtype, device="meta")

    def encode_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The shapes of the Linear that produces the codes, [r, inputs] and [r]."""
        shape = {"dtype": torch.float64, "device": "meta"}
        has_bias = bias is not None or self.shift is not None
        code_bias = torch.empty((self.rank,), **shape) if has_bias else None  # type: ignore[call-overload]
        return torch.empty((self.rank, weight.shape[1]), **shape), code_bias  # type: ignore[call-overload]


def blank_factor(width: int, rank: int, *, centred: bool) -> BlankFactor:
    """A factor of the given sizes without meaningful values."""
    zeros = torch.zeros
    return BlankFactor(
        zeros((rank, width), dtype=torch.float64),
        zeros((width, rank), dtype=torch.float64),
        zeros((rank,), dtype=torch.float64) if centred else None,
        zeros((width,), dtype=torch.float64) if centred else None,
    )
