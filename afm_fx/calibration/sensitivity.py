"""What an error in a site's features costs downstream: second moments of gradients, label-free.

*gradient*: ``E[g g^T]`` with ``g`` the gradient of the logit in the features. To first order, an error ``d`` that does
not depend on ``g`` changes the logit by ``E[(g^T d)^2] = tr(E[g g^T] E[d d^T])``.

*consumer*: ``E[J^T J]`` with ``J`` the Jacobian of what the next Linears give in the features, so the metric of the
next layer through the activation's mask, or of the first fully connected layer for a table. It is estimated with one
random vector ``v`` a row, for ``E[(J^T v)(J^T v)^T] = E[J^T J]`` where ``E[v v^T] = I`` (Hutchinson, 1990).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from afm_fx.calibration.moments import gram
from afm_fx.calibration.taps import Tap
from afm_fx.program import Batch, Program, WatchedRun, columns_of, expose_logits
from passes.graph import aten, weighted_call


@dataclass(frozen=True)
class Sensitivity:
    """Second moments of a site's gradients, in float64; mergeable with ``+``.

    Attributes:
        rows: how many rows of features they were summed over.
        gradient: [n, n], the sum of ``g g^T`` over those rows.
        consumer: [n, n], the sum of ``J^T v v^T J``.
    """

    rows: int
    gradient: Tensor
    consumer: Tensor

    def part(self, columns: Tensor) -> Sensitivity:
        """The sensitivity to some of the features, those at the positions ``columns`` (int64)."""
        gradient, consumer = (each[columns][:, columns].contiguous() for each in (self.gradient, self.consumer))
        return Sensitivity(self.rows, gradient, consumer)

    def __add__(self, other: Sensitivity) -> Sensitivity:
        return Sensitivity(self.rows + other.rows, self.gradient + other.gradient, self.consumer + other.consumer)


class SensitivityCollector:
    """Adds up the sensitivities of sites, batch by batch."""

    def __init__(self, program: Program, taps: Sequence[Tap]) -> None:
        self._program = program
        self._graph = expose_logits(program)[0].graph_module
        self._taps = taps
        self._generator = torch.Generator()
        self._tapped = {name for tap in taps for name in tap.nodes}
        self._linears = frozenset(_linears(self._graph))
        self.results: dict[str, Sensitivity] = {}

    def add(self, batch: Batch, seed: int) -> None:
        """Adds a batch, with random vectors that follow from the seed."""
        self._generator.manual_seed(seed)
        inputs = self._program.cast_inputs(batch.leaves)
        gradients, consumers = (self._gradients(inputs, through_linears=each) for each in (False, True))
        for tap, gradient, consumer in zip(self._taps, gradients, consumers, strict=True):
            name, found = tap.site.name, Sensitivity(gradient.shape[0], _moment(gradient), _moment(consumer))
            self.results[name] = self.results[name] + found if name in self.results else found

    def _gradients(self, inputs: Sequence[Any], *, through_linears: bool) -> Iterator[Tensor]:
        """The gradients ``[N, n]`` of every tap, of the logits with a random sign to each column.

        Args:
            through_linears: of random projections of what the next Linears give instead, at which each path ends.
        """
        tapped: dict[str, Tensor] = {}
        losses: list[Tensor] = []

        def watch(node: Node, value: Any) -> Any:
            if node.op == "get_attr" and isinstance(value, Tensor):
                return value.detach()  # no gradients of parameters
            if through_linears and node in self._linears and value.requires_grad:
                losses.append((value * self._normal(value)).sum())
                value = value.detach()
            if node.name in self._tapped:
                starts = through_linears or not value.requires_grad
                tapped[node.name] = value = value.detach().requires_grad_() if starts else value
            return value

        with torch.enable_grad():
            outputs = columns_of(WatchedRun(self._graph, watch).run_flat(inputs))
            if outputs.requires_grad:
                losses.append((outputs * self._signs(outputs)).sum())
            loss = sum(losses, start=torch.zeros(()))
        found = torch.autograd.grad(loss, list(tapped.values()), allow_unused=True, materialize_grads=True)
        gradients = dict(zip(tapped, found, strict=True))
        for tap in self._taps:
            uses = tap.read([gradients[name] for name in tap.nodes])
            yield torch.cat([use.reshape(-1, tap.site.width) for use in uses])

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator, dtype=like.dtype).to(like.device)

    def _signs(self, like: Tensor) -> Tensor:
        """Signs that part the columns of the logits: a random one each, so that cross terms average out."""
        drawn = torch.randint(0, 2, like.shape, generator=self._generator)
        return (drawn * 2 - 1).to(device=like.device, dtype=like.dtype)


def _moment(gradients: Tensor) -> Tensor:
    return gram(gradients).to(device="cpu", dtype=torch.float64)


def _linears(graph: GraphModule) -> Iterable[Node]:
    """The products with a constant matrix."""
    products = (aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default)
    return (node for node in graph.graph.nodes if weighted_call(graph, node, *products) is not None)
