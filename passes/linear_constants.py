"""The constants of a Linear, for the passes that make other Linears of it."""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph_tools import args_of, aten, constant_of


def weight_and_bias(module: GraphModule, node: object) -> tuple[Tensor, Tensor | None] | None:
    """Weight ``[outputs, inputs]`` and bias of a Linear, None where they are no constants or it is something else."""
    if not isinstance(node, Node) or node.op != "call_function" or node.target is not aten.linear.default:
        return None
    weight = constant_of(module, args_of(node)[1])
    given = args_of(node)[2] if len(args_of(node)) > 2 else None
    bias = None if given is None else constant_of(module, given)
    if (
        weight is None
        or weight.dim() != 2
        or (given is not None and bias is None)
        or args_of(node)[0] is args_of(node)[1]
    ):
        return None
    return weight, bias
