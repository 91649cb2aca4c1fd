"""Logits: what a program outputs before its sigmoids, one column per number that it predicts for a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.program.inputs import Inputs
from afm_fx.program.program import Program
from passes.canonical import ExposeLogits
from passes.graph import clone_graph_module

NEAREST = 1e-6
"""How near to 0 and 1 a probability may come before it is turned into a logit."""


def expose_logits(program: Program) -> tuple[Program, bool]:
    """The program without the sigmoids that only outputs read, and whether there were any.

    An output that is no sigmoid stays what it is: a regression, a logit already, or a product of probabilities.
    """
    module = clone_graph_module(program.graph_module)
    changed = ExposeLogits()(module).modified
    return program.with_graph(module), changed


def columns_of(outputs: Any) -> Tensor:
    """All floating outputs side by side, ``[rows, columns]``; outputs without a row axis are left out.

    Args:
        outputs: what a program returns, any structure of tensors ``[rows, ...]``.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    floating = [leaf for leaf in tensors if leaf.is_floating_point() and leaf.dim() > 0]
    return torch.cat([leaf.reshape(leaf.shape[0], -1) for leaf in floating], dim=1)


def probability_columns(program: Program, exposed: Program, inputs: Inputs) -> Tensor:
    """Which columns are probabilities that no sigmoid ends in, bool ``[columns]``.

    A product of probabilities (a conversion after a click, say) is such a column. It lies in [0, 1], and exposing the
    logits did not change it.

    Args:
        exposed: what :func:`expose_logits` made of it.
    """
    outputs, logits = (columns_of(each.run(inputs)) for each in (program, exposed))
    return ((outputs >= 0) & (outputs <= 1) & (outputs == logits)).all(dim=0)


def as_logits(columns: Tensor, probabilities: Tensor) -> Tensor:
    """The columns, with logits in the place of probabilities, so that errors of all columns are of one kind."""
    return torch.where(probabilities, torch.logit(columns, eps=NEAREST), columns)
