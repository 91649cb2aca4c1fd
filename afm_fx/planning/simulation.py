"""What factors would do to the logits, measured without rewriting the program.

A rewritten program computes what the original computes on the features that the codes can tell. So every factored
site's features ``y`` are replaced with ``decode(encode(y))`` in the original graph, and only the nodes behind them are
computed again: all other values are known from one run of the original over the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from afm_fx.calibration import Tap
from afm_fx.data import checked_batches
from afm_fx.errors import CalibrationError
from afm_fx.program import Inputs, Program, WatchedRun, columns_of, explained_failure, expose_logits
from passes.codes import Factor

Values = dict[Node, Any]


class Simulation:
    """The program on some rows, with the features of any sites replaced.

    Args:
        taps: of the sites that may be replaced; no two at once that share a node.
        max_rows: take so many rows at most.
        reference: the logits to compare with, the program's own where left out.

    Raises:
        CalibrationError: no batches.
        BatchError: a batch does not fit.
    """

    def __init__(
        self,
        program: Program,
        batches: Iterable[Inputs],
        taps: Sequence[Tap],
        *,
        max_rows: int | None = None,
        reference: Tensor | None = None,
    ) -> None:
        self._graph = expose_logits(program)[0].graph_module
        self._taps = {tap.site.name: tap for tap in taps}
        self._by_name = {node.name: node for node in self._graph.graph.nodes}
        self._behind = {name: _behind([self._by_name[node] for node in tap.nodes]) for name, tap in self._taps.items()}
        self._known: list[Values] = []
        self.rows = 0
        outputs = []
        with torch.no_grad():
            for batch in checked_batches(program, batches, max_rows):
                values: Values = {}
                run = WatchedRun(self._graph, values.__setitem__)
                with explained_failure(program, batch):
                    outputs.append(columns_of(run.run_flat(program.cast_inputs(batch.leaves))))
                self._known.append(values)
                self.rows += batch.rows
        if not self._known:
            raise CalibrationError("there are no rows to measure logits on")
        self.original = torch.cat(outputs) if reference is None else reference

    @property
    def variance(self) -> float:
        """The variance of the original's logits over the rows, on average over their columns."""
        return float(self.original.double().var(dim=0, correction=0).mean())

    @property
    def rounding(self) -> float:
        """The root mean squared logit times the relative spacing of numbers in its format: no error below is known."""
        rms = float(self.original.double().square().mean().sqrt())
        return rms * torch.finfo(self.original.dtype).eps

    def logits(self, factors: Mapping[str, Factor]) -> Tensor:
        """The logits ``[rows, columns]`` with the sites' features as their codes tell them."""
        return torch.cat([self._with_factors(values, factors) for values in self._known])

    def error(self, factors: Mapping[str, Factor]) -> float:
        """The mean squared difference of the logits to the original's."""
        return float((self.logits(factors).double() - self.original.double()).square().mean())

    def _with_factors(self, known: Values, factors: Mapping[str, Factor]) -> Tensor:
        """The logits of one batch with some sites' features replaced; only what lies behind one of them is run."""
        behind = set[Node]().union(*(self._behind[name] for name in factors))
        values = {node: value for node, value in known.items() if node not in behind}
        waiting: dict[Node, Factor] = {}
        for name, factor in factors.items():
            tap = self._taps[name]
            nodes = [self._by_name[node] for node in tap.nodes]
            if behind.isdisjoint(nodes):  # always so for tables: ids do not depend on features
                values.update(zip(nodes, replaced(tap, factor, [known[node] for node in nodes]), strict=True))
            else:
                waiting.update(dict.fromkeys(nodes, factor))
        run = WatchedRun(self._graph, lambda node, value: through(waiting[node], value) if node in waiting else None)
        with torch.no_grad():
            return columns_of(run.run_flat((), known=values))


def replaced(tap: Tap, factor: Factor, values: Sequence[Tensor]) -> list[Tensor]:
    """What the values of a tap's nodes become when they are encoded and decoded."""
    decoded = (through(factor, features) for features in tap.read(values))
    return [part for features in decoded for part in torch.split(features, list(tap.widths), dim=-1)]


def through(factor: Factor, features: Tensor) -> Tensor:
    """The features ``[..., n]`` after encoding and decoding, in their own number format."""
    factor = factor.to(features.dtype)
    return factor.decode(factor.encode(features))


def _behind(nodes: Iterable[Node]) -> frozenset[Node]:
    """The nodes that depend on some nodes, which are not among them unless they depend on one another."""
    found, pending = set[Node](), [user for node in nodes for user in node.users]
    while pending:
        node = pending.pop()
        if node not in found and node.op != "output":
            found.add(node)
            pending += node.users
    return frozenset(found)
