"""Which parameters a recovery trains, and copies of them, so that the program given keeps its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afm_fx.errors import RecoveryError
from afm_fx.program import Program
from afm_fx.recovery.recovery_report import RecoverySettings
from passes.codes import ActivateCodes
from passes.graph import clone_graph_module

TRAINED_FORMATS = (torch.float32, torch.float64)
"""Number formats that Adam's small steps survive in."""


def trained_copy(
    program: Program, teacher: Program, settings: RecoverySettings
) -> tuple[Program, dict[str, nn.Parameter]]:
    """The program with copies of the parameters to train, and these by name; all others are shared.

    Factors are the parameters that the teacher does not have: neither the same tensor nor one of equal numbers under
    the same name. That is what a rewrite made or changed.
    """
    if any(step.name in {"pack", "typed inputs"} for step in program.recipe.steps):
        raise RecoveryError("a packed program cannot be trained: recover first, then pack")
    module = clone_graph_module(program.graph_module)
    if settings.activation is not None and not ActivateCodes()(module).modified:
        raise RecoveryError("activation: there is no Linear whose code a Linear decodes; recover before packing")
    theirs = dict(teacher.graph_module.named_parameters(remove_duplicate=False))
    shared = {id(parameter) for parameter in theirs.values()}
    copies: dict[int, nn.Parameter] = {}
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        kept = id(parameter) in shared or (name in theirs and _equal(parameter, theirs[name]))
        if not parameter.is_floating_point() or (kept and settings.trainable != "all"):
            continue
        if parameter.dtype not in TRAINED_FORMATS:
            raise RecoveryError(
                f"'{name}' is {parameter.dtype}, too coarse to train; recover first, reduce the precision afterwards"
            )
        trained[name] = copies[id(parameter)] = nn.Parameter(parameter.detach().clone())
    if not trained:
        raise RecoveryError("there is nothing to train that the teacher does not have; or say trainable='all'")
    for owner in module.modules():  # tied names stay tied
        for leaf, held in list(owner._parameters.items()):
            if held is not None and id(held) in copies:
                owner._parameters[leaf] = copies[id(held)]
    return program.with_graph(module), trained


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
