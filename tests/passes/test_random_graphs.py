"""Whatever the model looks like, a rewrite computes what the model computes on the features that its codes can tell."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import event, given, note
from torch.utils import _pytree as pytree

import afm_fx
from passes.sink_codes import Analysis
from tests.passes.rewrite_check import check_rewrite
from tests.random_models import RandomModel, Recipe, build, describe, random_inputs
from tests.random_operators import OPERATORS, THEMES, recipes

EXAMPLE_ROWS = 7


def captured(recipe: Recipe) -> tuple[RandomModel, afm_fx.Program]:
    """The model of a recipe and its program, both in float64."""
    model = build(recipe, OPERATORS)
    return model, afm_fx.capture(model, random_inputs(EXAMPLE_ROWS))


def check(recipe: Recipe) -> Analysis:
    """Captured exactly, and rewritten as :func:`check_rewrite` asks."""
    model, program = captured(recipe)
    for rows in (2, 9):
        inputs = random_inputs(rows, 1)
        with torch.no_grad():
            expected = model(*inputs)
        for one, other in zip(
            pytree.tree_leaves(program.run(inputs)), pytree.tree_leaves(expected), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    return check_rewrite(program, random_inputs, seed=zlib.crc32(repr(recipe).encode()))

@pytest.mark.parametrize("theme", THEMES)
def test_a_random_model_is_rewritten_exactly(theme: str) -> None:
    @given(recipes(theme))
    def run(recipe: Recipe) -> None:
        note(describe(recipe, build(recipe, OPERATORS)))
        for fate in {str(verdict.fate) for verdict in check(recipe).verdicts}:
            event(fate)

    run()
