"""Every model of the zoo is captured exactly, or refused with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from afm_fx.errors import CaptureError
from afm_fx.large_tables.absent_tables import storage_of
from afm_fx.program.capture import capture
from afm_fx.program.program import Program
from passes.canonical import unify_linears
from passes.canonical.unify_linears import parts_of
from passes.graph import PROVENANCE
from tests.zoo.entry import EXAMPLE_ROWS, ZooEntry, call
from tests.zoo.models import ZOO, captured, zoo_params

DEEPCTR_SINGLE_TASK = {
    "AFM", "AFN", "AutoInt", "CCPM", "DCN-vector", "DCN-matrix", "DCNMix", "DeepFM", "DIFM", "FiBiNET", "IFM", "MLR",
    "NFM", "ONN", "PNN-inner", "PNN-outer", "WDL", "xDeepFM",
}  # fmt: skip
DEEPCTR_MULTI_TASK = {"ESMM", "MMOE", "PLE", "SharedBottom"}
FRESH_SEED = 3


def assert_same(model: nn.Module, program: Program, inputs: object) -> None:
    with torch.no_grad():
        expected = call(model, inputs)
    found = program.run(inputs)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.isfinite(other).all()
        if any(node.meta.get(PROVENANCE) == unify_linears.RULE for node in program.graph_module.graph.nodes):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)  # a product in another form rounds otherwise
        else:
            assert torch.equal(one, other)


def test_the_zoo_holds_all_22_models_of_deepctr() -> None:
    assert {entry.name for entry in ZOO} >= DEEPCTR_SINGLE_TASK | DEEPCTR_MULTI_TASK
    assert len(DEEPCTR_SINGLE_TASK | DEEPCTR_MULTI_TASK) == 22


@pytest.mark.parametrize("entry", zoo_params())
@pytest.mark.parametrize("rows", [2, EXAMPLE_ROWS, 19])
def test_outputs_are_bit_equal_at_other_batch_sizes(entry: ZooEntry, rows: int) -> None:
    model, program = captured(entry.name)
    assert program.dynamic_batch
    assert program.front_door == "torch.export"
    assert_same(model, program, entry.inputs(rows, FRESH_SEED))


@pytest.mark.parametrize("entry", zoo_params())
def test_one_row_gives_what_the_model_gives(entry: ZooEntry) -> None:
    model, program = captured(entry.name)
    inputs = entry.inputs(1, FRESH_SEED)
    try:
        with torch.no_grad():
            call(model, inputs)
    except RuntimeError as error:
        pytest.skip(f"the model itself cannot take one row: {error}")
    assert_same(model, program, inputs)


@pytest.mark.parametrize("entry", zoo_params())
def test_float64_program_equals_the_model_in_float64(entry: ZooEntry) -> None:
    program = captured(entry.name)[1].to(torch.float64)
    model = entry.load()[0].double()
    inputs = entry.inputs(11, FRESH_SEED)
    # A mean over a list divides by float32 lengths inside the original, whatever its own dtype.
    tolerance = 1e-7 if entry.name.startswith("VarLen") else 1e-12
    with torch.no_grad():
        expected = call(model, _as_double(inputs))
    for one, other in zip(pytree.tree_leaves(program.run(inputs)), pytree.tree_leaves(expected), strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other.double(), rtol=tolerance, atol=1e-14)


def _as_double(inputs: object) -> object:
    return pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, inputs)


@pytest.mark.parametrize("entry", zoo_params())
def test_parameters_are_shared_with_the_model_and_unchanged(entry: ZooEntry) -> None:
    model, program = captured(entry.name)
    fresh = dict(entry.load()[0].named_parameters(remove_duplicate=False))
    own = dict(model.named_parameters(remove_duplicate=False))
    names = [name for name, _ in program.graph_module.named_parameters()]
    assert names
    parts = parts_of(program.graph_module)
    for name in names:
        held, whole = program.graph_module.get_parameter(name), own[parts[name].name if name in parts else name]
        assert held is whole or (name in parts and torch.equal(held, parts[name].of(whole)))
        assert storage_of(held) == storage_of(whole)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in own.items())


@pytest.mark.parametrize("entry", zoo_params(refused=True))
def test_what_cannot_be_captured_says_why_where_and_what_to_try(entry: ZooEntry) -> None:
    model, example = entry.load()
    with pytest.raises(CaptureError) as refusal:
        capture(model, example)
    message = str(refusal.value)
    assert entry.refused is not None
    assert entry.refused in message
    assert "dien.py" in message
    assert "What to try: " in message
