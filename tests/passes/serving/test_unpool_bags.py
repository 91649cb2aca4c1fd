"""Bags of a known length as lookups and sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import embedding_bag

import afm_fx
from passes.graph import aten, clone_graph_module
from passes.serving.unpool_bags import UnpoolBags
from passes.sites.lookups import BAGS as BAG_OPERATORS
from tests.passes.sites.test_lookups import BAGS, LENGTH, Function, capture, inputs

KNOWN = [name for name in BAGS if "begin anywhere" not in name and "last end" not in name]
MAXIMUM: Function = lambda m, ids, _: m.linear(embedding_bag(ids, m.table.weight, mode="max"))  # noqa: E731 - as in the other cases


def unpooled(program: afm_fx.Program) -> afm_fx.Program:
    module = clone_graph_module(program.graph_module)
    UnpoolBags()(module)
    return program.with_graph(module)


@pytest.mark.parametrize("name", KNOWN)
def test_a_bag_of_known_length_becomes_a_lookup_and_a_sum(name: str) -> None:
    program = capture(BAGS[name][0]).to(torch.float64)
    result = unpooled(program)
    targets = [node.target for node in result.graph_module.graph.nodes]
    assert not BAG_OPERATORS & set(targets)
    assert aten.embedding.default in targets
    assert aten.arange.start_step not in targets
    for rows in (1, 3, 8):
        batch = inputs(rows)
        torch.testing.assert_close(result.run(batch), program.run(batch), rtol=1e-12, atol=1e-12)


def test_a_bag_of_nothing_but_padding_is_zero() -> None:
    for mode in ("sum", "mean"):
        program = capture(lambda m, ids, _, mode=mode: embedding_bag(ids, m.table.weight, mode=mode, padding_idx=2))  # type: ignore[misc]
        ids = torch.full((3, LENGTH), 2)
        assert torch.equal(unpooled(program).run((ids, torch.rand(3, LENGTH))), torch.zeros(3, 6))


@pytest.mark.parametrize("name", ["maximum", "mean of bags that begin anywhere", "sum of bags with the last end"])
def test_every_other_bag_stays(name: str) -> None:
    program = capture(MAXIMUM if name == "maximum" else BAGS[name][0])
    before = str(program.graph_module.graph)
    assert str(unpooled(program).graph_module.graph) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["mean of a bag", "weighted sum of a bag"])
def test_the_onnx_file_holds_no_loop_and_keeps_the_number_format(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    program = capture(BAGS[name][0]).to(dtype)
    for position, each in enumerate((program, afm_fx.compress(program, [inputs(32)], afm_fx.FullRank()).program)):
        report = afm_fx.export_onnx(each, tmp_path / f"{position}.onnx")
        assert report.max_abs_difference is not None
        assert report.max_abs_difference <= (1e-5 if dtype is torch.float32 else 1e-12)
        assert "Loop" not in dict(report.operators)
