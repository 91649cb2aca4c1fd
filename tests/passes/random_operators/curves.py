"""Curves and norms, and operators that no table of laws knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.passes.random_models import Draft, Step
from tests.passes.random_operators.registry import operator, unary


@torch.library.custom_op("afm_fx_tests::twist", mutates_args=())
def twist(features: Tensor) -> Tensor:
    """An operator that no table of laws knows: neighbours are mixed, each by a curve."""
    return features.roll(1, -1) * 0.5 + features.sin()


@twist.register_fake
def _(features: Tensor) -> Tensor:
    return torch.empty_like(features)


@torch.library.custom_op("afm_fx_tests::two_ways", mutates_args=())
def two_ways(features: Tensor) -> tuple[Tensor, Tensor]:
    """The same with two results."""
    return features.cos(), features.flip(-1) + 1.0


@two_ways.register_fake
def _(features: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(features), torch.empty_like(features)


unary(
    "curves",
    relu="torch.relu($)",
    sigmoid="torch.sigmoid($)",
    tanh="torch.tanh($)",
    gelu="F.gelu($)",
    leaky_relu="F.leaky_relu($, 0.1)",
    softmax="$.softmax(-1)",
    softmax_over_fields="$.softmax(1)",
    maximum="$.amax(1)",
    absolute="$.abs()",
    clamped="$.clamp(-1.0, 1.0)",
    normalized="F.normalize($, dim=-1, eps=0.1)",
    unknown="torch.ops.afm_fx_tests.twist($)",
    unknown_pair="torch.ops.afm_fx_tests.two_ways($)[1]",
    unknown_both="sum(torch.ops.afm_fx_tests.two_ways($))",
    cumulated="$.cumsum(1)",
    flipped="$.flip(-1)",
    rounded_trip="$.float().double() * 0.0 + $",
)


@operator("curves")
def batch_norm(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: 0 < value.axes < 3)
    if value is None:
        return None
    layer = draft.part(nn.BatchNorm1d(value.row[0], affine=step.n % 3 != 2), f"{value.row[0]}")
    return f"{layer}({value.name})"


@operator("curves")
def layer_norm(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: value.axes > 0 and value.row[-1] > 1)
    if value is None:
        return None
    axes = value.row[step.b % value.axes :]
    layer = draft.part(nn.LayerNorm(axes, eps=0.1, elementwise_affine=step.n % 2 == 0), f"{list(axes)}")
    return f"{layer}({value.name})"


@operator("curves")
def prelu(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    return None if value is None else f"{draft.part(nn.PReLU(), '')}({value.name})"


@operator("curves")
def perceptron(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    hidden, width = 2 + step.b % 4, 1 + step.n % 4
    first, second = draft.linear(value.row[-1], hidden), draft.linear(hidden, width)
    return f"{second}(torch.relu({first}({value.name})))"
