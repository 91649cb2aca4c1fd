"""Programs of small models in a fraction of the time that ``torch.export`` takes, for random models by the thousand.

``make_fx`` traces the model once, before dispatch, which gives the operators that an export without decompositions
gives (the model must be functional). A share of the random models goes through the real capture all the same.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

import afm_fx
from passes.canonical.canonicalize import Canonicalize


def fast_capture(model: nn.Module, inputs: tuple[Tensor, ...]) -> afm_fx.Program:
    """The program of a functional model whose inputs are tensors with the batch as axis 0; it returns a flat list."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    constants = [mode.from_tensor(tensor, static_shapes=True) for tensor in state.values()]
    batches = [_batch(mode, place, tensor) for place, tensor in enumerate(inputs)]

    def flat(*tensors: Tensor) -> list[Any]:
        own = dict(zip(state, tensors[: len(state)], strict=True))
        return pytree.tree_leaves(torch.func.functional_call(model, own, tensors[len(state) :]))

    with torch.no_grad():
        traced = make_fx(flat, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)(
            *constants, *batches
        )
    for name, constant in traced.named_buffers(recurse=False):
        model.register_buffer(name, constant)
    module = GraphModule(model, _with_state(traced, list(state)))
    Canonicalize()(module)
    return afm_fx.Program(module, inputs, {}, tuple(True for _ in inputs), front_door="make_fx")


def _batch(mode: FakeTensorMode, place: int, tensor: Tensor) -> Tensor:
    """A fake input whose axis 0 is the one symbol of the graph."""
    sizes = [DimDynamic.DUCK] + [DimDynamic.STATIC] * (tensor.dim() - 1)
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(tensor, symbolic_context=context, source=ConstantSource(f"input_{place}"))


def _with_state(traced: GraphModule, names: list[str]) -> torch.fx.Graph:
    """The traced graph with its first placeholders as the parameters and buffers that they stand for."""
    graph = traced.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, names, strict=False):
        with graph.inserting_before(node), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the traced module does not have the state yet
            constant = graph.get_attr(name)
        constant.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(constant)
        graph.erase_node(node)
    return graph
