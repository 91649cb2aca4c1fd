"""Explanations: complete, deterministic, without data, and without a trace in the model."""

from __future__ import annotations

import copy
import importlib.util
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.errors import CaptureError, OutputExistsError
from afm_fx.report.explanation import PART, Explanation
from benchmarks.common.criteo_shape import CriteoShape
from passes.laws.verdicts import Fate
from tests.graphs import ROWS, Tower, tower_batch
from tests.wide_and_deep import WideAndDeep, rows_of_ids


class Mixed(nn.Module):
    """One table that is absorbed, scaled on codes and restored, beside one that is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bias, self.linear = nn.Embedding(ROWS, 4), nn.Embedding(ROWS, 1), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        features = self.table(ids)
        total = features.sum(-1, keepdim=True) * 0.5
        scaled, squared = self.linear(features * 2.0), (features * features).sum(-1, keepdim=True)
        return scaled + squared + features.tanh().sum(-1, keepdim=True) + total + self.bias(ids)


def mixed() -> Explanation:
    return afm_fx.explain(Mixed(), torch.randint(0, ROWS, (5,)))


def test_every_site_and_use_has_a_verdict_with_a_reason() -> None:
    explanation = mixed()
    fates: dict[str, set[str]] = {}
    for chain in explanation.chains:
        fates.setdefault(chain.site.name, set()).add(str(chain.verdict.fate))
        assert chain.verdict.reason
    assert fates["table"] == {"absorbed", "on codes", "restored"}
    assert fates["bias"] == {"refused"}
    assert {site.name for site in explanation.sites} == set(fates)
    assert explanation.uses("refused") == 1
    assert sum(explanation.uses(fate) for fate in ("absorbed", "on codes", "restored", "refused")) == len(
        explanation.chains
    )


def test_printing_gives_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    explanation = mixed()
    print(explanation)
    printed = capsys.readouterr().out
    assert printed == f"{explanation}\n" == f"{explanation.table()}\n"
    for word in ("table, embedding", "absorbed", "on codes", "restored", "refused", "test_explanation.py:"):
        assert word in printed


def test_nothing_of_the_model_changes() -> None:
    model = Tower().train()
    before = copy.deepcopy(model.state_dict())
    program = afm_fx.capture(model, tower_batch(4))
    graph = str(program.graph_module.graph)
    afm_fx.explain(model, tower_batch(4))
    afm_fx.explain(program)
    assert model.training
    assert str(program.graph_module.graph) == graph
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_values_of_the_example_do_not_matter() -> None:
    model = Tower()
    ids, dense = tower_batch(4)
    assert afm_fx.explain(model, (ids, dense)) == afm_fx.explain(model, (torch.zeros_like(ids), dense * torch.nan))


def test_the_weights_do_not_matter() -> None:
    model = Tower()
    expected = afm_fx.explain(model, tower_batch(4))
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    assert afm_fx.explain(model, tower_batch(4)) == expected


def test_a_module_its_program_and_its_exported_program_are_explained_alike() -> None:
    model, batch = Tower(), tower_batch(4)
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(model.eval(), batch, dynamic_shapes=({0: rows}, {0: rows}))
    from_module = afm_fx.explain(model, batch)
    assert afm_fx.explain(afm_fx.capture(model, batch)) == from_module
    from_exported = afm_fx.explain(exported)
    assert from_exported.front_door == "ExportedProgram"
    assert from_exported.chains == from_module.chains


def test_a_plan_is_explained_with_its_own_sites_ranks_and_reasons() -> None:
    program = afm_fx.capture(Tower().eval(), tower_batch(4))
    policy = afm_fx.Fixed(embedding=2, linear=3, overrides={"second": None})
    plan = afm_fx.make_plan(program, afm_fx.calibrate(program, [tower_batch(200)]), policy)
    explained = afm_fx.explain_plan(program, plan)
    assert {site.name: site.refusal for site in explained.sites if site.refusal is not None} == {
        "second": "left alone by override",
        "last": plan.refused["last"],
    }
    assert explained.uses("absorbed") == afm_fx.explain(program).uses("absorbed")
    assert {chain.site.name for chain in explained.chains if chain.verdict.fate is Fate.RESTORED} == {"first"}
    assert program.parameter_count() == plan.parameters_before


def test_a_plan_with_joint_tables_and_left_out_units_is_explained_in_the_graph_it_is_applied_to() -> None:
    plan = afm_fx.compress(WideAndDeep().eval(), [rows_of_ids(300)], afm_fx.Budget(0.5), pack=False).plan
    assert plan.units
    program = afm_fx.capture(WideAndDeep().eval(), rows_of_ids(4))
    parts = {name for site in plan.sites for name in site.tables if name.startswith("weights.")}
    assert parts
    assert parts == {site.name for site in afm_fx.explain(program).sites if site.refusal == PART}
    alone = next(site for site in plan.sites if site.tables and site.rank is not None)
    sites = tuple(replace(site, rank=None, reason="on a whim") if site is alone else site for site in plan.sites)
    factors = {name: factor for name, factor in plan.factors.items() if name != alone.name}
    explained = afm_fx.explain_plan(program, replace(plan, sites=sites, factors=factors))
    names = {site.name for site in explained.sites}
    assert {"first", *factors} <= names
    assert alone.name not in names
    refused = {
        chain.site.name: chain.verdict.reason for chain in explained.chains if chain.verdict.fate is Fate.REFUSED
    }
    assert refused[alone.tables[0]] == "on a whim"


def test_a_module_without_example_inputs_is_refused() -> None:
    with pytest.raises(CaptureError, match="example_inputs are needed"):
        afm_fx.explain(Tower())


def test_a_model_without_sites_says_so() -> None:
    explanation = afm_fx.explain(nn.ReLU(), torch.rand(3, 2))
    assert explanation.chains == ()
    assert "no embedding table and no Linear" in str(explanation)


def test_json_is_written_once_unless_forced(tmp_path) -> None:
    path = tmp_path / "deeper" / "explanation.json"
    explanation = mixed()
    explanation.save_json(path)
    assert Explanation.from_json(path.read_text()) == explanation
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        explanation.save_json(path)
    assert path.read_text() == "mine"
    explanation.save_json(path, force=True)
    assert Explanation.from_json(path.read_text()) == explanation


@pytest.mark.skipif(importlib.util.find_spec("deepctr_torch") is None, reason="deepctr-torch is not installed")
def test_26_tables_are_explained_fast() -> None:
    shape = CriteoShape(total_rows=2_000)
    program = afm_fx.capture(shape.deepfm(0), shape.batch(4, 0))
    afm_fx.explain(program)  # torch imports parts of itself at the first fake run
    started = time.process_time()
    explanation = afm_fx.explain(program)
    seconds = time.process_time() - started
    assert explanation.uses("refused") == 27
    assert seconds < 3.0  # some 0.5 s where nothing else runs
