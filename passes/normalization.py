"""LINEAR: batch normalisation in eval mode, a constant scale and shift per channel.

Replaces ``s * (A z + o) + t`` with ``(diag(s) A) z + (s * o + t)``, where ``s = w / sqrt(var + eps)`` and
``t = b - s * mean``. Where the channels are fields rather than features, every field's decoder is scaled as a whole.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from passes.code_builder import CodeBuilder
from passes.graph_tools import aten
from passes.low_rank_value import LowRankValue
from passes.moves import single
from passes.outcomes import Carried, Law, Outcome, Restored, Values

BATCH_AXIS = "its channels lie along an axis whose size is not known before the model runs"
COMPUTED = "its scale or its running statistics are not constants"
TRAINING = "it normalizes by statistics of the batch, which change with every batch"


def batch_norm(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``batch_norm(x, w, b, mean, var, training, momentum, eps, cudnn)``: one tensor."""
    if node.args[5]:
        return Restored(TRAINING, Law.NONLINEAR)
    outcome = _normalized(builder, node, values, float(node.args[7]))  # type: ignore[arg-type]
    return Carried(outcome) if isinstance(outcome, LowRankValue) else outcome


def frozen_batch_norm(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``_native_batch_norm_legit_no_training(x, w, b, mean, var, momentum, eps)``: a tuple, its first element used."""
    outcome = _normalized(builder, node, values, float(node.args[6]))  # type: ignore[arg-type]
    return Carried((outcome,)) if isinstance(outcome, LowRankValue) else outcome


def _normalized(builder: CodeBuilder, node: Node, values: Values, epsilon: float) -> LowRankValue | Restored:
    value = single(node, values)
    weight, bias, mean, variance = (_vector(builder, each) for each in node.args[1:5])
    given = [each is not None for each in node.args[1:5]]
    if value is None or mean is None or variance is None:
        return Restored(COMPUTED)
    if (weight is None and given[0]) or (bias is None and given[1]):
        return Restored(COMPUTED)
    value = builder.pull(value, max(len(value.lead) - 1, 0))
    if value is None or not value.lead:
        return Restored(BATCH_AXIS)
    scale = (variance + epsilon).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return _scaled_and_shifted(builder, node, value, scale, shift)


def _vector(builder: CodeBuilder, origin: Any) -> Tensor | None:
    constant = builder.constant(origin)
    return None if constant is None else constant.to("cpu", torch.float64)


def _scaled_and_shifted(
    builder: CodeBuilder, node: Node, value: LowRankValue, scale: Tensor, shift: Tensor
) -> LowRankValue:
    """The value times a constant and plus another, both along its first feature axis."""
    inner = math.prod(value.trailing[1:])
    origins = tuple(node.args[1:5])
    blocks, first = [], 0
    for block in value.blocks:
        channels = torch.arange(first, first + block.width) // inner
        key = ("normalized", origins, first, block.width, inner)
        decoder = block.decoder.scaled_by(scale[channels], key).shifted(shift[channels], key)
        blocks.append(replace(block, decoder=decoder))
        first += block.width
    return value.with_blocks(blocks, value.trailing)


LAWS = {aten._native_batch_norm_legit_no_training.default: frozen_batch_norm, aten.batch_norm.default: batch_norm}
