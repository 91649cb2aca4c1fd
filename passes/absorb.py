"""LINEAR: constants that take a decoder in.

Replaces ``W (A z + o) + b`` with ``(W A) z + (b + W o)``; through a concat, ``W`` is cut into the columns of each
block: ``sum_i W_i (A_i z_i + o_i) + b = [W_1 A_1, W_2 A_2, ...] z + (b + sum_i W_i o_i)``.
"""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from passes.code_builder import CodeBuilder
from passes.factor import Factor
from passes.graph_tools import aten, constant_of, value_of
from passes.low_rank_value import Block, LowRankValue
from passes.outcomes import Absorbed, Outcome, Restored, Values
from passes.parameter_ledger import Extent, Record, extent_of
from passes.sites import site_name

RULE = "absorb"
ABSORBED = "a Linear takes the decoder into its weight, so the features are never built"
PER_FIELD = "one weight is applied to several fields whose decoders differ"


def linear(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``linear(x, W, b)`` of a low-rank ``x``."""
    value = values.get(node.args[0]) if isinstance(node.args[0], Node) else None
    if not isinstance(value, LowRankValue) or builder.constant(node.args[1]) is None:
        return Restored("its weight is computed from features, so it is a product of features")
    ready = builder.push(value, rule=RULE, like=node)
    if ready is None:
        return Restored(PER_FIELD)
    return Absorbed(linear_on(builder, node, ready.code, ready.blocks), ABSORBED)


def linear_site(
    builder: CodeBuilder, node: Node, code: Node, blocks: tuple[Block, ...], factored: tuple[Factor, str]
) -> LowRankValue:
    """The output of a factored Linear: its code, made from the input's ``code`` with the given blocks.

    Args:
        factored: the factor of the Linear's output, and the site's name.
    """
    own_code = linear_on(builder, node, code, blocks, factored)
    factor, site = factored
    block = Block(factor.width, factor.rank, site, factor.decoder, factor.offset)
    return LowRankValue(own_code, tuple(value_of(own_code).shape)[:-1], (factor.width,), (block,))


def linear_on(
    builder: CodeBuilder,
    node: Node,
    code: Node,
    blocks: tuple[Block, ...],
    factored: tuple[Factor, str] | None = None,
) -> Node:
    """The Linear node on codes; with a factor, the Linear that yields the code of its own output."""
    if factored is None and all(block.is_identity and block.offset is None for block in blocks):
        return builder.emit(aten.linear.default, code, *node.args[1:], rule=RULE, like=node)
    key = (node.args[1], node.args[2] if len(node.args) > 2 else None, factored is not None, *map(Block.key, blocks))
    if key not in builder.absorbed:
        builder.absorbed[key] = _new_weight(builder, node, blocks, factored)
    return builder.emit(aten.linear.default, code, *builder.absorbed[key], rule=RULE, like=node)


def _new_weight(
    builder: CodeBuilder, node: Node, blocks: tuple[Block, ...], factored: tuple[Factor, str] | None
) -> tuple[Node, Node | None]:
    weight, bias = builder.constant(node.args[1]), _bias(builder, node)
    if weight is None:
        raise TypeError(f"the weight of '{node.name}' is not a constant")
    rows = Extent(int(weight.shape[0]))
    needs = frozenset(block.site for block in blocks if block.offset is not None and block.site is not None)
    new_weight, new_bias = builder.absorbed_weight(weight, bias, blocks)
    if factored is not None:
        factor, site = factored
        rows = Extent(0, ((site, factor.width),))
        new_weight, new_bias = factor.encode_weight(new_weight, new_bias)
        needs |= {site} if factor.offset is not None else set()
    name, columns, origin = _stem(builder, node), extent_of(blocks), str(node.args[1])
    record = Record(rows, columns, origin=origin, inputs=columns)
    matrix = builder.new_parameter(f"{name}.weight", new_weight, weight.dtype, record, rule=RULE)
    if new_bias is None:
        return matrix, None
    if bias is not None:
        record = Record(rows, Extent(1), origin=str(node.args[2]), inputs=columns)
    else:
        record = Record(rows, Extent(1), needs, origin=f"new bias of {origin}", inputs=columns)
    return matrix, builder.new_parameter(f"{name}.bias", new_bias, weight.dtype, record, rule=RULE)


def _bias(builder: CodeBuilder, node: Node) -> Tensor | None:
    if len(node.args) < 3 or node.args[2] is None:
        return None
    return builder.constant(node.args[2])


def _stem(builder: CodeBuilder, node: Node) -> str:
    """A readable name for new parameters: the old weight's, or the node's."""
    weight = node.args[1]
    if isinstance(weight, Node) and constant_of(builder.module, weight) is not None:
        return f"{site_name(str(weight.target))}.on_codes"
    return f"{node.name}.on_codes"
