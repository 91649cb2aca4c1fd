"""A plan of ``compress`` in a ``PassManager``, on every model of the zoo: it makes the program of ``apply_plan``."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_manager import PassManager
from torch.utils import _pytree as pytree

import passes
from afm_fx.program.capture import _named_keywords
from afm_fx.program.inputs import dynamic_shapes_for
from tests.zoo.entry import ZooEntry
from tests.zoo.models import captured, zoo_params
from tests.zoo.test_zoo_rewrite import FRESH_SEED, budgeted


def exported(name: str) -> GraphModule:
    """The model as plain ``torch.export`` gives it."""
    model, program = captured(name)
    args, kwargs = program.example_args, program.example_kwargs
    with _named_keywords(model, kwargs):
        shapes = dynamic_shapes_for(model, args, kwargs, program.batched)
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes).run_decompositions({}).module()


@pytest.mark.parametrize("entry", zoo_params())
def test_a_pass_manager_of_several_steps_makes_the_program_of_apply_plan(entry: ZooEntry) -> None:
    program, (plan, applied) = captured(entry.name)[1], budgeted(entry.name)
    manager = PassManager([*passes.pipeline(plan)], steps=3, run_checks_after_each_pass=True)
    made = manager(exported(entry.name)).graph_module
    found, expected = (dict(each.named_parameters()) for each in (made, applied.graph_module))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    args, kwargs = program.bind(entry.inputs(9, FRESH_SEED))
    outputs, wanted = (pytree.tree_leaves(each(*args, **kwargs)) for each in (made, applied))
    for one, other in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    code = made.code
    assert not [each.name for each in passes.pipeline(plan) if each(made).modified]
    assert made.code == code
