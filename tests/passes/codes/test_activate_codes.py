from __future__ import annotations

from typing import Any

import torch
from torch import nn

import afm_fx
from passes.codes.activate_codes import RULE, ActivateCodes
from passes.graph import PROVENANCE, aten, clone_graph_module
from tests.fast_capture import fast_capture
from tests.graphs import Tower, tower_batch


def test_a_relu_stands_between_the_factors_of_linears_and_nowhere_else() -> None:
    low_rank = _low_rank(Tower().eval(), tower_batch(40), embedding=2, linear=3)
    clone = clone_graph_module(low_rank.graph_module)
    activate = ActivateCodes()
    assert activate(clone).modified
    assert activate.sites == ("first", "second")
    made = [node for node in clone.graph.nodes if node.meta.get(PROVENANCE) == RULE]
    assert [node.target for node in made] == [aten.relu.default] * 2
    for node in made:
        assert [user.target for user in node.users] == [aten.linear.default]
        assert list(node.args[0].users) == [node]
    assert not ActivateCodes()(clone).modified


def test_the_program_computes_the_decoder_of_the_activated_code() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).eval()
    x = torch.randn(50, 4)
    low_rank = _low_rank(model, (x,), linear=2)
    clone = clone_graph_module(low_rank.graph_module)
    ActivateCodes()(clone)
    state = dict(clone.named_parameters())
    code = nn.functional.linear(x, state["0.on_codes.weight"], state["0.on_codes.bias"])
    features = nn.functional.linear(code.relu(), state["0.decoder.weight"], state["0.decoder.bias"])
    torch.testing.assert_close(clone(x)[0], model[1:](features))
    assert (code < 0).any()


def test_a_code_that_the_next_layer_absorbs_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 12), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 1)).eval()
    low_rank = _low_rank(model, (torch.randn(50, 4),), linear=2)
    assert "0.on_codes.weight" in dict(low_rank.graph_module.named_parameters())
    assert not ActivateCodes()(clone_graph_module(low_rank.graph_module)).modified


def _low_rank(model: nn.Module, batch: tuple[torch.Tensor, ...], **ranks: Any) -> afm_fx.Program:
    program = fast_capture(model, batch)
    statistics = afm_fx.calibrate(program, [batch])
    return afm_fx.apply_plan(program, afm_fx.make_plan(program, statistics, afm_fx.Fixed(**ranks)))
