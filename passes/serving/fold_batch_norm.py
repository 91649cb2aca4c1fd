"""Folds batch-norm in eval mode into a Linear before or after it.

In eval mode ``bn(y) = g y + h`` with ``g = weight / sqrt(running_var + eps)`` and ``h = bias - g running_mean``.

Replaces ``bn(W x + b)``  with ``(g W) x + (g b + h)``,
         ``W bn(x) + b``  with ``(W g) x + (W h + b)``,

where nothing else reads ``W``.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph import (
    GraphPass,
    WeightedCall,
    args_of,
    aten,
    constant_of,
    emit_linear,
    is_call,
    rank_of,
    weighted_call,
)

RULE = "fold batch norm"
_EVAL = aten._native_batch_norm_legit_no_training.default


class FoldBatchNorm(GraphPass):
    """Replaces batch-norm beside a Linear by other constants of that Linear."""

    after = ("FoldConstants", "Canonicalize")
    """Weights must be constants before they can be told."""

    def rewrite(self, graph_module: GraphModule) -> None:
        for node in list(graph_module.graph.nodes):
            if is_call(node, _EVAL):
                _fold(graph_module, node)


def affine_of_batch_norm(module: GraphModule, node: Node) -> tuple[Tensor, Tensor] | None:
    """``(g, h)`` [features] in float64, None where a statistic is no constant."""
    weight, bias, mean, variance = (constant_of(module, given) for given in args_of(node)[1:5])
    if mean is None or variance is None or (args_of(node)[1] is not None and weight is None):
        return None
    gain = torch.rsqrt(variance.double() + float(args_of(node)[6]))
    if weight is not None:
        gain = gain * weight.double()
    shift = -gain * mean.double()
    return gain, shift if bias is None else shift + bias.double()


@torch.no_grad()
def _fold(module: GraphModule, node: Node) -> None:
    source, users = args_of(node)[0], list(node.users)
    plain = all(user.target is operator.getitem and (args_of(user)[1] == 0 or not user.users) for user in users)
    result = next((user for user in users if args_of(user)[1] == 0), None)
    if not plain or result is None or rank_of(source) != 2:
        return
    affine = affine_of_batch_norm(module, node)
    if affine is None:
        return
    gain, shift = affine
    before = weighted_call(module, source, aten.linear.default)
    if before is not None and len(source.users) == 1 and before.is_only_reader:
        _refold(module, before, before.source, gain[:, None] * before.weight, gain * _bias(before) + shift, result)
        return
    readers = [weighted_call(module, user, aten.linear.default) for user in result.users]
    after = [linear for linear in readers if linear is not None]
    if not after or len(after) < len(readers) or not all(linear.is_only_reader for linear in after):
        return
    for linear in after:
        weight = linear.weight.double()
        _refold(module, linear, source, weight * gain, weight @ shift + _bias(linear), linear.node)


def _bias(linear: WeightedCall) -> Tensor:
    """The bias in float64, zeros where there is none."""
    zeros = linear.weight.new_zeros(len(linear.weight), dtype=torch.float64)
    return zeros if linear.bias is None else linear.bias.double()


def _refold(  # noqa: PLR0917 - a Linear is its input and its constants
    module: GraphModule, linear: WeightedCall, source: Node, weight: Tensor, bias: Tensor, stands_for: Node
) -> None:
    """Puts the Linear with other constants in the place of a node."""
    dtype = linear.weight.dtype
    with module.graph.inserting_before(linear.node):
        made = emit_linear(
            module, source, weight.to(dtype), bias.to(dtype), linear.name, "normalized", rule=RULE, like=linear.node
        )
    stands_for.replace_all_uses_with(made)
