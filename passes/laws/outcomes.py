"""What a law says about one node that takes low-rank values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch.fx import Node

from passes.codes import CodeBuilder, LowRankValue, Product


class Law(StrEnum):
    """How an operator treats low-rank features."""

    MOVE = "move"
    LINEAR = "linear"
    GATE = "gate"
    QUADRATIC = "quadratic"
    INTERACTION = "interaction"
    NONLINEAR = "nonlinear"
    OUTPUT = "output"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Carried:
    """The node's result is low-rank too: one value, or one per element of a tuple result.

    A product of features is computed as ever where its features are needed, and dead in the end where they are not.
    """

    value: LowRankValue | tuple[LowRankValue, ...] | Product


@dataclass(frozen=True)
class Absorbed:
    """The node is replaced by one on codes, its decoder folded into constants."""

    node: Node
    reason: str


@dataclass(frozen=True)
class Restored:
    """The node needs the features themselves.

    Attributes:
        law: the law that decided, None for the operator's own.
    """

    reason: str
    law: Law | None = None


@dataclass(frozen=True)
class Summed:
    """The node is replaced by sums of inner products.

    Attributes:
        on_codes: the nodes whose products are those of codes.
    """

    node: Node
    on_codes: tuple[Node, ...]


Outcome = Carried | Absorbed | Restored | Summed
Values = Mapping[Node, LowRankValue | tuple[LowRankValue, ...] | Product]
Rule = Callable[[CodeBuilder, Node, Values], Outcome]
"""Looks at a node whose operands' low-rank values are given and emits the node's counterpart on codes."""
