"""The constants of decoders as nodes of the graph: ``A``, ``o`` and ``g`` become parameters, each made once.

A decoder made of other sites' decoders (a sum of codes) is no parameter of its own: its matrix is the others' side by
side, its offset their sum. What is computed from parameters alone stands at the graph's start, so that it can serve
any place of the graph; exporters fold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.fx import Node

from passes.codes.code_builder import CodeBuilder
from passes.codes.decoder import Decoder
from passes.codes.low_rank_value import LowRankValue
from passes.graph import aten, fake_mode, stamp, value_of


class DecoderConstants:
    """Nodes of the constants of a value's decoders.

    Args:
        value: whose decoders they are; gives the number format, and the sites that need a constant of no site.
    """

    def __init__(self, builder: CodeBuilder, value: LowRankValue) -> None:
        self.builder, self.value = builder, value

    def matrix(self, decoder: Decoder) -> Node:
        """``A`` [width, rank]: a parameter, or the parameters of its parts side by side; the identity needs none."""
        if decoder.is_identity:
            return self._assembled(("eye", decoder.width), lambda: self._filled(aten.eye.default, decoder.width))
        if not _is_assembled(decoder):
            return self.parameter(("matrix", decoder.key), decoder.full_matrix(), "decoder.weight", decoder)
        return self._assembled(("matrix", decoder.key), lambda: self._beside(decoder))

    def _beside(self, decoder: Decoder) -> Node:
        parts = [self.matrix(part) for part in decoder.parts if part.rank]
        return parts[0] if len(parts) == 1 else self.emit(aten.cat.default, parts, 1)

    def offset(self, decoder: Decoder) -> Node | None:
        """``o`` [width] as a parameter, or as the sum of its parts' offsets; None for zero."""
        if decoder.offset is None:
            return None
        key = ("offset", decoder.key, decoder.offset_key)
        if not _is_assembled(decoder):
            return self.parameter(key, decoder.offset, "decoder.bias", decoder)
        return self._assembled(key, lambda: self._summed(decoder))

    def _summed(self, decoder: Decoder) -> Node:
        offsets = [offset for part in decoder.parts if (offset := self.offset(part)) is not None]
        return self.emit(aten.sum.dim_IntList, self.stack(offsets, decoder.width), [0])

    def offset_or_zeros(self, decoder: Decoder) -> Node:
        """``o`` [width], zeros where there is none."""
        offset = self.offset(decoder)
        return offset if offset is not None else self.zeros(decoder.width)

    def gated(self, decoder: Decoder) -> Node:
        """``g`` [width] as a parameter."""
        vector = torch.zeros(decoder.width, dtype=torch.float64) if decoder.gated is None else decoder.gated
        return self.parameter(("gated", decoder.key, decoder.gated_key), vector, "decoder.gated", decoder)

    def stack(self, parts: Sequence[Node], *shape: int) -> Node:
        """Constants of one shape as one with a new first axis (a cat: one node where a stack exports many)."""
        with self.at_start():
            joined = self.emit(aten.cat.default, list(parts))
            return self.emit(aten.reshape.default, joined, [len(parts), *shape])

    def parameter(self, key: object, tensor: Tensor, name: str, decoder: Decoder | None = None) -> Node:
        """A parameter that is made once per key, named after the decoder's first site."""
        shared = self.builder.shared
        if key not in shared:
            site = next(iter(dict(decoder.terms))) if decoder is not None and decoder.terms else self.value.sites[0]
            sites = decoder.sites if decoder is not None else frozenset[str]()
            shared[key] = self.builder.new_parameter(
                f"{site}.{name}", tensor, value_of(self.value.code),
                columns=decoder.terms if decoder is not None and tensor.dim() == 2 else (),
                needs=sites or frozenset(self.value.sites),
            )  # fmt: skip
        node: Node = shared[key]
        return node

    def emit(self, target: object, *args: object) -> Node:
        """One node at the insertion point."""
        return self.builder.emit(target, *args)

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Nodes made here stand before all others that compute something."""
        with self.builder.graph.inserting_before(self.builder.first_call):
            yield

    def _assembled(self, key: object, make: Callable[[], Node]) -> Node:
        if key not in self.builder.shared:
            with self.at_start():
                self.builder.shared[key] = make()
        node: Node = self.builder.shared[key]
        return node

    def zeros(self, *sizes: int) -> Node:
        """Zeros [*sizes]."""
        return self._assembled(("zeros", *sizes), lambda: self._filled(aten.zeros.default, list(sizes)))

    def _filled(self, target: Callable[..., Tensor], *sizes: object) -> Node:
        """A constant that needs no parameter."""
        code = value_of(self.value.code)
        form = {"dtype": code.dtype, "device": code.device}
        node = self.builder.graph.call_function(target, sizes, form)  # type: ignore[arg-type]
        with fake_mode(self.builder.graph):
            node.meta["val"] = target(*sizes, **form)
        stamp(node, self.builder.rule, self.builder.node)
        return node


def _is_assembled(decoder: Decoder) -> bool:
    """Whether a decoder is made of other sites' decoders, which are parameters already."""
    return bool(decoder.parts) and not any(part.is_identity and not part.is_plain for part in decoder.parts)
