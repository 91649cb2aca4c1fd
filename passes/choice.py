"""Where products of features are computed: on codes, or on the features themselves.

Both ways are exact. The cheaper one is taken, counted in multiply-adds per row of the batch. Features that some other
operator needs anyway cost nothing to decode, so the choice is made when all other uses are known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch.fx import Node

from passes.code_builder import CodeBuilder, positions_of
from passes.low_rank_value import LowRankValue


@dataclass(frozen=True)
class Alternative:
    """One product that can be computed in two ways.

    Attributes:
        node: the node that multiplies.
        on_codes: multiply-adds per row on codes.
        on_features: multiply-adds per row on features that are there.
        decoding: multiply-adds per row to decode what has to be decoded first, per node.
    """

    node: Node
    on_codes: int
    on_features: int
    decoding: Mapping[Node, int] = field(default_factory=dict)

    def restored(self, decoded: Collection[Node]) -> int:
        """Multiply-adds per row with features, where some are decoded anyway."""
        return self.on_features + sum(cost for node, cost in self.decoding.items() if node not in decoded)


class Quadratic(Protocol):
    """What a node computes by products of features, as :class:`Alternative` parts that are added up."""

    @property
    def alternatives(self) -> Sequence[Alternative]:
        """The parts."""

    def emit(self, on_codes: Sequence[bool], features: Callable[[Node], Node]) -> Node:
        """The node's counterpart at the insertion point.

        Args:
            on_codes: which parts to compute on codes.
            features: the node that holds the decoded features of an operand.
        """


def choose(candidates: Sequence[Sequence[Alternative]], decoded: Collection[Node]) -> list[list[bool]]:
    """Which parts of each candidate to compute on codes, where some features are decoded anyway.

    What one part decodes may make features cheaper for another, so the choice is repeated until nothing changes.
    """
    known = set(decoded)
    chosen = [[True] * len(parts) for parts in candidates]
    changed = True
    while changed:
        changed = False
        for parts, flags in zip(candidates, chosen, strict=True):
            for place, part in enumerate(parts):
                if flags[place] and part.restored(known) <= part.on_codes:
                    flags[place] = False
                    known.update(part.decoding)
                    changed = True
    return chosen


def decoding_cost(builder: CodeBuilder, value: LowRankValue) -> int:
    """Multiply-adds per row to decode a value, every block once."""
    blocks = {(block.columns, block.decoder.key): block for block in value.blocks}
    return positions_of(value) * sum(
        block.width * builder.rank_of(block.decoder) for block in blocks.values() if not block.decoder.is_identity
    )
