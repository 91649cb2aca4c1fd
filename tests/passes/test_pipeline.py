"""The passes of a plan in torch's ``PassManager``, on graphs that plain ``torch.export`` made."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager, this_before_that_pass_constraint

import afm_fx
import passes
from passes.codes.factor import Factor
from passes.graph import PROVENANCE, PassArgumentError, aten, clone_graph_module
from passes.sites.sites import find_sites
from tests.graphs import Tower, tower_batch
from tests.passes.test_sink_codes import orthonormal_factors
from tests.zoo.models import ZOO, zoo_params

Pass = Callable[[GraphModule], PassResult | None]
ROOT = Path(__file__).parents[2]
MODELS = {"AutoInt", "DCN-matrix", "DCN-vector", "DeepFM", "DIN", "FiBiNET", "MMOE", "StackedTableModel", "xDeepFM"}
"""Models of one input tensor that together hold every kind of use."""


def exported(model: torch.nn.Module, *example: torch.Tensor) -> GraphModule:
    """What a platform engineer starts from: no part of ``afm_fx`` was near it."""
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    return torch.export.export(model, example, dynamic_shapes=shapes).run_decompositions({}).module()


def in_double(name: str) -> tuple[torch.nn.Module, Callable[[int], torch.Tensor]]:
    entry = next(entry for entry in ZOO if entry.name == name)

    def rows(count: int) -> torch.Tensor:
        batch: torch.Tensor = entry.inputs(count, 5)
        return batch.double() if batch.is_floating_point() else batch

    return entry.load()[0].double(), rows


def in_linear_form(module: GraphModule) -> GraphModule:
    """A copy on which all sites are there to be found."""
    clone = clone_graph_module(module)
    for each in passes.pipeline({})[:2]:
        each(clone)
    return clone


def multiply_by_one(module: GraphModule) -> PassResult:
    """A foreign pass that makes nodes of its own: a product with 1 before every sigmoid, with its value."""
    done = False
    for node in list(module.graph.nodes):
        operand = node.args[0] if node.target is aten.sigmoid.default else None
        if operand is not None and operand.target is not aten.mul.Tensor:
            with module.graph.inserting_before(node):
                again = module.graph.call_function(aten.mul.Tensor, (operand, 1.0))
            again.meta["val"] = operand.meta["val"]
            node.args = (again,)
            done = True
    return PassResult(module, done)


class DropDead(PassBase):
    """A foreign pass of torch's own base class."""

    def call(self, graph_module: GraphModule) -> PassResult:
        return PassResult(graph_module, graph_module.graph.eliminate_dead_code())


@pytest.mark.parametrize("entry", zoo_params([entry for entry in ZOO if entry.name in MODELS]))
def test_a_pass_manager_with_foreign_passes_between_keeps_the_model_at_full_rank(entry: Any) -> None:
    model, rows = in_double(entry.name)
    module = exported(model, rows(6))
    factors = orthonormal_factors(in_linear_form(module), ("embedding", "linear"))
    first, unify, units, sink, last = passes.pipeline(factors)
    order: list[Pass] = [DropDead(), first, unify, multiply_by_one, units, sink, DropDead(), last]
    constraints = [this_before_that_pass_constraint(*pair) for pair in itertools.pairwise(order)]
    manager = PassManager(order, constraints, steps=3, run_checks_after_each_pass=True)
    manager.add_checks(lambda checked: checked.graph.lint())  # type: ignore[union-attr, operator]
    result = manager(module)
    assert result.modified
    made = {node.meta.get(PROVENANCE) for node in result.graph_module.graph.nodes}
    assert "look up" in made
    assert not {site.name for site in find_sites(result.graph_module)} & set(factors)
    for count in (2, 11):
        batch = rows(count)
        found, expected = result.graph_module(batch), model(batch)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * float(expected.detach().abs().max()))
    code = result.graph_module.code
    assert not any(each(result.graph_module).modified for each in passes.pipeline(factors))
    assert result.graph_module.code == code


def test_the_manager_stops_once_nothing_changes() -> None:
    runs = itertools.count()

    def count(module: GraphModule) -> PassResult:
        next(runs)
        return PassResult(module, modified=False)

    module = exported(Tower().double(), *as_double(tower_batch(4)))
    manager = PassManager([*passes.pipeline(orthonormal_factors(module)), count], steps=9)
    assert manager(module).modified
    assert next(runs) == 2
    assert not manager(module).modified


def as_double(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch[0], batch[1].double()


def test_a_plan_of_afm_fx_is_taken_as_it_is() -> None:
    model = Tower()
    program = afm_fx.capture(model, tower_batch(4))
    plan = afm_fx.make_plan(program, afm_fx.calibrate(program, [tower_batch(64)]), afm_fx.Fixed(embedding=2, linear=3))
    module = exported(model, *tower_batch(4))
    low_rank = PassManager(passes.pipeline(plan))(module).graph_module  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in low_rank.parameters()) == plan.parameters_after
    batch = tower_batch(9)
    torch.testing.assert_close(low_rank(*batch), afm_fx.apply_plan(program, plan).run(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", [None, 3, {"tables.0": "no factor"}, ["tables.0"]])
def test_what_is_no_plan_is_refused(plan: Any) -> None:
    with pytest.raises(PassArgumentError, match="a plan is a mapping of site names to passes"):
        passes.pipeline(plan)


def test_an_error_in_the_manager_names_pass_and_node_all_the_way_down() -> None:
    module = exported(Tower(), *tower_batch(4))
    factors = orthonormal_factors(module)

    def forgetful(module: GraphModule) -> PassResult:
        del next(node for node in module.graph.nodes if node.target is aten.relu.default).meta["val"]
        return PassResult(module, modified=True)

    *first, sink, last = passes.pipeline(factors)
    with pytest.raises(Exception, match="'SinkCodes' pass after the following passes") as raised:
        PassManager([*first, forgetful, sink, last])(module)
    assert isinstance(raised.value.__cause__, passes.PassPreconditionError)
    assert "SinkCodes cannot run on this graph: node 'relu'" in str(raised.value.__cause__)


@functools.cache
def tower_factors() -> dict[str, Factor]:
    torch.manual_seed(0)
    return orthonormal_factors(exported(Tower(), *tower_batch(4)), ("embedding", "linear"))


def test_the_same_model_gives_the_same_graph_and_the_same_names() -> None:
    texts, states = set(), set()
    for _ in range(2):
        module = exported(Tower(), *tower_batch(4))
        for each in passes.pipeline(tower_factors()):
            each(module)
        texts.add(module.code)
        states.add(tuple((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()))
    assert len(texts) == len(states) == 1


PRINT_NAMES = """
import torch
from tests.passes.test_pipeline import exported, passes, tower_batch, tower_factors, Tower
module = exported(Tower(), *tower_batch(4))
for each in passes.pipeline(tower_factors()):
    each(module)
print(module.code, list(module.state_dict()))
"""


def test_names_do_not_depend_on_the_process() -> None:
    """Sets and hashes differ between processes; names must not."""
    texts = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-c", PRINT_NAMES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603
        texts.add(done.stdout)
    assert len(texts) == 1
    assert "codes" in texts.pop()
