"""What a law says about one node that takes low-rank values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from torch.fx import Node

from passes.low_rank_value import LowRankValue

if TYPE_CHECKING:
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


Outcome = Carried | Absorbed | Restored
Values = Mapping[Node, LowRankValue | tuple[LowRankValue, ...]]
Rule = Callable[["CodeBuilder", Node, Values], Outcome]
"""Looks at a node whose operands' low-rank values are given and emits the node's counterpart on codes."""
