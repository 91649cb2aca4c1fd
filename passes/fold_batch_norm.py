"""Folds batch-norm in eval mode into a Linear before or after it.

In eval mode ``bn(y) = g y + h`` with ``g = weight / sqrt(running_var + eps)`` and ``h = bias - g running_mean``.

Replaces ``bn(W x + b)``  with ``(g W) x + (g b + h)``,
         ``W bn(x) + b``  with ``(W g) x + (W h + b)``.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from passes.graph_pass import GraphPass
from passes.graph_tools import args_of, aten, call, constant_of, derived_name, finish, parameter, shape_of

RULE = "fold batch norm"
_EVAL = aten._native_batch_norm_legit_no_training.default


class FoldBatchNorm(GraphPass):
    """Replaces batch-norm beside a Linear by other constants of that Linear."""

    def call(self, graph_module: GraphModule) -> PassResult:
        changed = False
        for node in list(graph_module.graph.nodes):
            if node.op == "call_function" and node.target is _EVAL:
                changed |= _fold(graph_module, node)
        changed |= finish(graph_module)
        return PassResult(graph_module, changed)


def affine_of_batch_norm(module: GraphModule, node: Node) -> tuple[Tensor, Tensor] | None:
    """``(g, h)`` [features] in float64, None where a statistic is no constant."""
    weight, bias, mean, variance = (None if each is None else constant_of(module, each) for each in args_of(node)[1:5])
    if mean is None or variance is None or (args_of(node)[1] is not None and weight is None):
        return None
    gain = torch.rsqrt(variance.double() + float(args_of(node)[6]))
    if weight is not None:
        gain = gain * weight.double()
    shift = -gain * mean.double()
    return gain, shift if bias is None else shift + bias.double()


@torch.no_grad()
def _fold(module: GraphModule, node: Node) -> bool:
    source, users = args_of(node)[0], list(node.users)
    plain = all(user.target is operator.getitem and (args_of(user)[1] == 0 or not user.users) for user in users)
    if not plain or not isinstance(source, Node) or len(shape_of(source) or ()) != 2:
        return False
    affine = affine_of_batch_norm(module, node)
    result = next((user for user in users if args_of(user)[1] == 0), None)
    if affine is None or result is None:
        return False
    gain, shift = affine
    if source.target is aten.linear.default and len(source.users) == 1:
        weight, bias = _constants(module, source)
        if weight is not None:
            made = _linear(module, source, gain[:, None] * weight, gain * bias + shift)
            result.replace_all_uses_with(made)
            return True
    consumers = list(result.users)
    if not consumers or not all(
        user.target is aten.linear.default and args_of(user)[0] is result and args_of(user)[1] is not result
        and _constants(module, user)[0] is not None
        for user in consumers
    ):  # fmt: skip
        return False
    for user in consumers:
        weight, bias = _constants(module, user)
        if weight is None:
            raise AssertionError("checked above")
        made = _linear(module, user, weight * gain, weight @ shift + bias, source)
        user.replace_all_uses_with(made)
    return True


def _constants(module: GraphModule, linear: Node) -> tuple[Tensor | None, Tensor]:
    """Weight and bias of a Linear in float64 (a zero bias where it has none)."""
    weight = constant_of(module, args_of(linear)[1])
    given = args_of(linear)[2] if len(args_of(linear)) > 2 else None
    bias = None if given is None else constant_of(module, given)
    if weight is None or (given is not None and bias is None):
        return None, torch.zeros(())
    return weight.double(), torch.zeros(
        weight.shape[0], device=weight.device
    ).double() if bias is None else bias.double()


def _linear(module: GraphModule, like: Node, weight: Tensor, bias: Tensor, source: Node | None = None) -> Node:
    """A Linear in the place of another, with other constants."""
    old = constant_of(module, args_of(like)[1])
    if old is None:
        raise AssertionError("a Linear with a constant weight")
    name = str(args_of(like)[1].target)
    new_weight = parameter(module, derived_name(name, "normalized"), weight.to(old.dtype), rule=RULE)
    new_bias = parameter(module, derived_name(name, "normalized", "bias"), bias.to(old.dtype), rule=RULE)
    with module.graph.inserting_before(like):
        return call(
            module.graph, aten.linear.default, source or args_of(like)[0], new_weight, new_bias, rule=RULE, like=like
        )
