"""What a law says about one node that takes low-rank values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from torch.fx import Node

from passes.deferred import Product, View
from passes.low_rank_value import LowRankValue

if TYPE_CHECKING:
    from passes.choice import Quadratic
    from passes.code_builder import CodeBuilder


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
    """The node's result is low-rank too: one value, or one per element of a tuple result."""

    value: LowRankValue | tuple[LowRankValue, ...]


@dataclass(frozen=True)
class Absorbed:
    """The node is replaced by one on codes, its decoder folded into constants."""

    node: Node
    reason: str


@dataclass(frozen=True)
class Restored:
    """The node needs the features themselves.

    Attributes:
        reason: one sentence.
        law: the law that decided, None for the operator's own.
    """

    reason: str
    law: Law | None = None


@dataclass(frozen=True)
class Deferred:
    """The node stays as it is; what it computes is known, and may never be needed as features.

    Attributes:
        value: what it computes.
        otherwise: what it is where its features are needed after all; None where another node's outcome says that.
    """

    value: View | Product
    otherwise: Restored | None = None


@dataclass(frozen=True)
class Undecided:
    """The node's result is no features any more, and can be computed on codes or on features.

    Attributes:
        quadratic: both ways, and what they cost.
    """

    quadratic: Quadratic


Outcome = Carried | Absorbed | Restored | Deferred | Undecided
Values = Mapping[Node, LowRankValue | tuple[LowRankValue, ...] | View | Product]
Rule = Callable[["CodeBuilder", Node, Values], Outcome]
"""Looks at a node whose operands' low-rank values are given and emits the node's counterpart on codes."""
