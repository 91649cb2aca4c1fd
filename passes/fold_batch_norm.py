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
from passes.linear_constants import weight_and_bias

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
    before = _constants(module, source)
    if before is not None and len(source.users) == 1:
        weight, bias = before
        made = _linear(module, source, gain[:, None] * weight, gain * bias + shift)
        result.replace_all_uses_with(made)
        return True
    after = [(user, constants) for user in result.users if (constants := _reading(module, user, result)) is not None]
    if not after or len(after) != len(result.users):
        return False
    for user, (weight, bias) in after:
        made = _linear(module, user, weight * gain, weight @ shift + bias, source)
        user.replace_all_uses_with(made)
    return True


def _reading(module: GraphModule, linear: Node, source: Node) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a Linear of this very source."""
    return _constants(module, linear) if args_of(linear) and args_of(linear)[0] is source else None


def _constants(module: GraphModule, linear: object) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a Linear in float64 (a zero bias where it has none)."""
    constants = weight_and_bias(module, linear)
    if constants is None:
        return None
    weight, bias = constants[0].double(), constants[1]
    return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias.double()


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
