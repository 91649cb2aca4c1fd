"""Which parameters a recovery trains, and copies of them, so that the program given keeps its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from afm_fx.errors import RecoveryError
from afm_fx.program import Program
from afm_fx.recovery_settings import Trainable
from passes.graph_tools import clone_graph_module, constant_of
from passes.lookups import BAGS, ROW_LOOKUPS

TRAINED_FORMATS = (torch.float32, torch.float64)
"""Number formats that Adam's small steps survive in."""


def choose_parameters(program: Program, teacher: Program, trainable: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the parameters to train.

    The factors are those that the teacher does not have: neither the same tensor nor one of equal numbers under the
    same name. That is what a rewrite made or changed, packed or not.

    Raises:
        RecoveryError: a name that the program does not have, nothing to train, or a number format that is too coarse.
    """
    named = dict(program.graph_module.named_parameters())
    if isinstance(trainable, str):
        chosen = list(named) if trainable == Trainable.ALL else _not_of(named, teacher)
        chosen = [name for name in chosen if named[name].is_floating_point()]
    else:
        chosen = list(dict.fromkeys(trainable))
        unknown = [name for name in chosen if name not in named]
        if unknown:
            raise RecoveryError(
                f"the program has no parameter '{unknown[0]}'; it has {', '.join(sorted(named)[:8])} ..."
            )
    if not chosen:
        raise RecoveryError(
            "there is nothing to train: the program has no parameter that the teacher does not have. Where the whole "
            "model is to be tuned, say trainable='all'"
        )
    coarse = [name for name in chosen if named[name].dtype not in TRAINED_FORMATS]
    if coarse:
        raise RecoveryError(
            f"parameter '{coarse[0]}' is {named[coarse[0]].dtype}, too coarse to train; recover first, reduce the "
            "precision afterwards"
        )
    return tuple(chosen)


def with_own_copies(program: Program, names: Sequence[str]) -> tuple[Program, dict[str, nn.Parameter]]:
    """The program with copies of some parameters in their place; all others are shared. Tied names stay tied."""
    module = clone_graph_module(program.graph_module)
    named = dict(module.named_parameters())
    copies = {id(named[name]): nn.Parameter(named[name].detach().clone()) for name in names}
    for owner in module.modules():
        for leaf, held in list(owner._parameters.items()):
            if held is not None and id(held) in copies:
                owner._parameters[leaf] = copies[id(held)]
    return program.with_graph(module), {name: copies[id(named[name])] for name in names}


def zeros_to_keep(program: Program, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """For looked-up tables with zeros in them: 1 where a number may change and 0 where it is exactly zero.

    Zeros are how tables say padding: the row of a padding id, of an id outside a packed table, or the columns that fill
    a packed table's narrower rows. In a packed table no operator tells any more which rows those are.
    """
    tables = _looked_up(program.graph_module)
    masks = {}
    for name, parameter in parameters.items():
        if id(parameter) in tables:
            free = parameter.detach() != 0
            if not bool(free.all()):
                masks[name] = free.to(parameter.dtype)
    return masks


def _looked_up(module: GraphModule) -> set[int]:
    return {
        id(constant_of(module, node))
        for node in module.graph.nodes
        if node.op == "get_attr" and any(user.target in ROW_LOOKUPS | BAGS for user in node.users)
    }


def _not_of(named: Mapping[str, nn.Parameter], teacher: Program) -> list[str]:
    own = dict(teacher.graph_module.named_parameters(remove_duplicate=False))
    shared = {id(parameter) for parameter in own.values()}
    return [
        name
        for name, parameter in named.items()
        if id(parameter) not in shared and not (name in own and _equal(parameter, own[name]))
    ]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
