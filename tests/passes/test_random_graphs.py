"""Whatever the model looks like, a rewrite computes what the model computes on the features that its codes can tell.

The number of models is the hypothesis profile's: 100 by default, over 2,000 with ``make fuzz``.
"""

from __future__ import annotations

import random
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import event, given, note, reject, settings
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import afm_fx
from afm_fx.errors import ExportError
from passes.graph import clone_graph_module
from passes.sink_codes import Analysis, SinkCodes
from passes.sites.sites import find_sites
from tests.fast_capture import fast_capture
from tests.passes.random_models import Recipe, Step, Table, build, describe, random_inputs
from tests.passes.random_operators import NOT_IN_ONNX, OPERATORS, THEMES, recipes
from tests.passes.rewrite_check import check_rewrite, random_factors

EXAMPLE_ROWS = 7
ONE_IN = {"real capture": 10, "onnx": 25, "packed": 5}
"""How many models of the profile go through what costs more."""

Capture = Callable[[nn.Module, tuple[Tensor, ...]], afm_fx.Program]


def check(recipe: Recipe, capture: Capture = fast_capture) -> Analysis:
    """A model of float64 is captured exactly, and rewritten as :func:`check_rewrite` asks."""
    model = build(recipe, OPERATORS)
    program = capture(model, random_inputs(EXAMPLE_ROWS))
    for rows in (2, 9):
        inputs = random_inputs(rows, 1)
        with torch.no_grad():
            expected = model(*inputs)
        for one, other in zip(pytree.tree_leaves(program.run(inputs)), pytree.tree_leaves(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    return check_rewrite(program, random_inputs, seed=seed_of(recipe))


def seed_of(recipe: Recipe) -> int:
    """The same recipe, the same factors."""
    return zlib.crc32(repr(recipe).encode())


def shown(recipe: Recipe) -> Recipe:
    """The recipe, printed with its model's source if the test fails on it."""
    note(describe(recipe, build(recipe, OPERATORS)))
    return recipe


@pytest.mark.parametrize("theme", THEMES)
def test_a_random_model_is_rewritten_exactly_at_any_rank(theme: str) -> None:
    @settings(max_examples=-(-settings().max_examples // len(THEMES)))
    @given(recipes(theme))
    def run(recipe: Recipe) -> None:
        for fate in {str(verdict.fate) for verdict in check(shown(recipe)).verdicts}:
            event(fate)

    run()


def test_a_random_model_captured_by_torch_export_is_rewritten_exactly() -> None:
    @settings(max_examples=settings().max_examples // ONE_IN["real capture"])
    @given(recipes())
    def run(recipe: Recipe) -> None:
        check(shown(recipe), afm_fx.capture)

    run()


def test_a_random_model_packs_without_loss_before_and_after_its_rewrite() -> None:
    @settings(max_examples=settings().max_examples // ONE_IN["packed"])
    @given(recipes())
    def run(recipe: Recipe) -> None:
        program = fast_capture(build(shown(recipe), OPERATORS), random_inputs(EXAMPLE_ROWS))
        clone = clone_graph_module(program.graph_module)
        sites = [site for site in find_sites(clone) if site.refusal is None]
        SinkCodes(random_factors(sites, torch.Generator().manual_seed(seed_of(recipe)), full=False), strict=True)(clone)
        for unpacked in (program, program.with_graph(clone)):
            packed = afm_fx.pack(unpacked).program
            for rows in (2, 9):
                inputs = random_inputs(rows, 1)
                expected = pytree.tree_leaves(unpacked.run(inputs))
                for one, other in zip(pytree.tree_leaves(packed.run(inputs)), expected, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)

    run()


def test_a_random_model_exports_to_onnx_wherever_its_original_does() -> None:
    pytest.importorskip("onnxruntime")

    @settings(max_examples=settings().max_examples // ONE_IN["onnx"])
    @given(recipes(without=NOT_IN_ONNX, steps=6))
    def run(recipe: Recipe) -> None:
        program = afm_fx.capture(build(shown(recipe), OPERATORS), random_inputs(EXAMPLE_ROWS)).to(torch.float32)
        with tempfile.TemporaryDirectory() as directory:
            try:
                afm_fx.export_onnx(program, Path(directory) / "original.onnx")
            except ExportError:
                reject()
            clone = clone_graph_module(program.graph_module)
            sites = [site for site in find_sites(clone) if site.refusal is None]
            SinkCodes(random_factors(sites, torch.Generator().manual_seed(seed_of(recipe)), full=False), strict=True)(
                clone
            )
            report = afm_fx.export_onnx(program.with_graph(clone), Path(directory) / "low_rank.onnx")
            assert report.max_abs_difference is not None

    run()


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_of_the_vocabulary_is_used(op: str) -> None:
    choice = random.Random(op)  # noqa: S311 - no secret
    widths = (Table(4), Table(2, padded=True), Table(1))
    before = (Step("lookup", 0, 0, 3), Step("lookup", 1, 0, 3), Step("lookup", 0, 1, 0), Step("lookup", 2, 0, 0))
    for _ in range(50):
        a, b, n = (choice.randrange(12) for _ in range(3))
        more = choice.choice([(), (Step("reduce", a, 1, n),), (Step("squeezed"),)])
        if op in build(Recipe(widths, (*before, *more, Step(op, a, b, n))), OPERATORS).ops:
            return
    pytest.fail(f"no step of '{op}' fits anything")


def test_a_recipe_is_shown_as_the_source_of_its_model() -> None:
    recipe = Recipe((Table(4),), (Step("lookup"), Step("relu"), Step("product", 0, 1)))
    text = describe(recipe, build(recipe, OPERATORS))
    assert "v0 = self.table_0(ids[:, 0])\n" in text
    assert "v1 = torch.relu(v0)\n" in text
    assert eval(text.splitlines()[0]) == recipe  # noqa: S307 - the text is ours


def test_the_check_finds_a_lost_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe((Table(4),), (Step("lookup"), Step("relu")))
    check(recipe)
    monkeypatch.setattr("passes.codes.decoder_constants.DecoderConstants.offset", lambda self, decoder: None)
    with pytest.raises(AssertionError, match="rows differ by"):
        check(recipe)
