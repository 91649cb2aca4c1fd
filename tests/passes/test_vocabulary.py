"""The rest of the vocabulary, operator by operator: what becomes of a looked-up value, at full rank unchanged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passes.graph_tools import PROVENANCE, clone_graph_module
from passes.sink_codes import Fate, SinkCodes, analyze
from tests.passes.test_sink_codes import (
    ALL,
    FIELDS,
    WIDTH,
    Looked,
    assert_equal,
    build,
    orthonormal_factors,
    rewritten,
)

Function = Callable[[Looked], Tensor]


def keep(x: Looked, fields: int = 3) -> Tensor:
    """A mask [batch, fields]."""
    return x.dense[:, :fields] > 0


ON_CODES: dict[str, tuple[Function, int, str]] = {
    "masked_fill with zero": (
        lambda x: x.linear(x.stacked[:, :3].masked_fill(keep(x)[:, :, None], 0.0).sum(1)),
        WIDTH,
        "gate",
    ),
    "masked_fill with a large number": (
        lambda x: x.linear(x.own[0].masked_fill(keep(x, 1), -1e9)),
        WIDTH,
        "gate",
    ),
    "masked_fill per field with a number": (
        lambda x: x.linear(torch.stack(x.own[:3], 1).masked_fill(keep(x)[:, :, None], 2.0).flatten(1)),
        3 * WIDTH,
        "gate",
    ),
    "masked_fill of a mask written out": (
        lambda x: x.linear(x.own[0].masked_fill(keep(x, 1).expand(-1, WIDTH), 0.0)),
        WIDTH,
        "gate",
    ),
    "where with zero": (lambda x: x.linear(torch.where(keep(x, 1), x.own[0], 0.0)), WIDTH, "gate"),
    "where with zero first": (lambda x: x.linear(torch.where(keep(x, 1), 0.0, x.own[0])), WIDTH, "gate"),
    "where with zeros": (
        lambda x: x.linear(torch.where(keep(x, 1), x.own[0], torch.zeros_like(x.own[0]))),
        WIDTH,
        "gate",
    ),
    "where with a constant vector": (
        lambda x: x.linear(torch.where(keep(x, 1), x.own[0], x.narrow.weight[0])),
        WIDTH,
        "gate",
    ),
    "where of two tables": (lambda x: x.linear(torch.where(keep(x, 1), x.own[0], x.own[1])), WIDTH, "gate"),
    "where of two lookups of one table": (
        lambda x: x.linear(torch.where(keep(x, 1), x.stacked[:, 0], x.stacked[:, 1])),
        WIDTH,
        "gate",
    ),
    "where of one row and a sequence": (
        lambda x: x.linear(torch.where(keep(x)[:, :, None], x.stacked[:, :1], x.stacked[:, 1:]).sum(1)),
        WIDTH,
        "gate",
    ),
    "where of gated values": (
        lambda x: x.linear(torch.where(keep(x, 1), x.own[0] * x.dense[:, :1] + 1.0, x.own[1] * x.dense[:, 1:2])),
        WIDTH,
        "gate",
    ),
    "gate of a gated residual": (
        lambda x: x.linear((x.own[0] * x.dense[:, :1] + x.own[0]) * x.dense[:, 1:2] + x.own[0]),
        WIDTH,
        "gate",
    ),
    "gate per field of gated residuals": (
        lambda x: x.linear(
            (torch.stack(x.own[:3], 1) * x.dense[:, :, None] + 0.5).flatten(1)
            * x.dense[:, :1]
        ),
        3 * WIDTH,
        "gate",
    ),
    "gate per field of a gated sum": (
        lambda x: x.linear(((torch.stack(x.own[:3], 1) * x.dense[:, :1, None] + 0.5) * x.dense[:, :, None]).flatten(1)),
        3 * WIDTH,
        "gate",
    ),
    "sum of two gates": (
        lambda x: x.linear(x.own[0] * x.dense[:, :1] + x.own[1] * x.dense[:, 1:2]),
        WIDTH,
        "linear",
    ),
    "sum of two gates of one table with different offsets": (
        lambda x: x.linear((x.own[0] + 1.0) * x.dense[:, :1] + x.own[0] * x.dense[:, 1:2]),
        WIDTH,
        "linear",
    ),
    "weighted sum of fields": (
        lambda x: x.linear((torch.stack(x.own[:3], 1) * x.dense[:, :, None]).sum(1)),
        WIDTH,
        "linear",
    ),
    "query minus keys": (
        lambda x: x.linear((x.stacked[:, :1] - x.stacked[:, 1:]).flatten(1)),
        3 * WIDTH,
        "linear",
    ),
    "query of another table minus keys": (
        lambda x: x.linear((x.rows[0] - x.stacked[:, 1:]).sum(1)),
        WIDTH,
        "linear",
    ),
    "one field added to stacked fields": (
        lambda x: x.linear((x.rows[0] + torch.stack(x.own, 1)).flatten(1)),
        ALL,
        "linear",
    ),
    "gate that repeats the features": (
        lambda x: x.linear((x.own[0][:, None] * x.dense[:, :, None]).flatten(1)),
        3 * WIDTH,
        "gate",
    ),
    "gate per field of a repeated field": (
        lambda x: x.linear(
            (torch.stack([x.own[0], x.own[0], x.own[1]], 1) * x.dense[:, :, None]).flatten(1)
        ),
        3 * WIDTH,
        "gate",
    ),
    "gate by an expanded mask": (
        lambda x: x.linear((x.stacked[:, :3] * keep(x)[:, :, None].repeat_interleave(WIDTH, 2).float()).sum(1)),
        WIDTH,
        "gate",
    ),
    "quotient by an expanded count": (
        lambda x: x.linear(x.own[0] / (x.dense[:, :1].abs() + 1).expand(-1, WIDTH)),
        WIDTH,
        "gate",
    ),
}

RESTORED: dict[str, tuple[Function, int, str]] = {
    "mask along the features": (lambda x: x.own[0].masked_fill(x.dense.repeat(1, 2) > 0, 0.0), 1, "interaction"),
    "masked_fill with infinity": (lambda x: x.own[0].masked_fill(keep(x, 1), -torch.inf), 1, "gate"),
    "where with an infinite constant": (
        lambda x: torch.where(keep(x, 1), x.own[0], torch.tensor(-torch.inf)),
        1,
        "gate",
    ),
    "where with dense features": (lambda x: torch.where(keep(x, 1), x.own[0], x.dense.repeat(1, 2)), 1, "gate"),
}

CASES = ON_CODES | RESTORED


@pytest.mark.parametrize("name", ON_CODES)
def test_kept_on_codes_until_a_linear_takes_them_in(name: str) -> None:
    function, width, law = ON_CODES[name]
    program = build(function, width)
    sink, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    assert {verdict.fate for verdict in sink.verdicts} == {Fate.ON_CODES, Fate.ABSORBED}, sink.verdicts
    assert law in {verdict.law for verdict in sink.verdicts if verdict.fate is Fate.ON_CODES}
    assert "restore" not in {node.meta.get(PROVENANCE) for node in low_rank.graph_module.graph.nodes}


@pytest.mark.parametrize("name", RESTORED)
def test_restored_just_before(name: str) -> None:
    function, width, law = RESTORED[name]
    program = build(function, width)
    sink, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    assert {verdict.fate for verdict in sink.verdicts} == {Fate.RESTORED}
    assert {verdict.law for verdict in sink.verdicts} == {law}
    assert all(len(verdict.reason) > 20 for verdict in sink.verdicts)


@pytest.mark.parametrize("name", CASES)
def test_the_analysis_says_what_the_rewrite_does(name: str) -> None:
    function, width = CASES[name][:2]
    program = build(function, width)
    module = program.graph_module
    analysis = analyze(module)
    clone = clone_graph_module(module)
    factors = orthonormal_factors(module, ("embedding", "linear"))
    sink = SinkCodes(factors)
    sink(clone)
    assert analysis.verdicts == sink.verdicts
    ranks = {name: factor.rank for name, factor in factors.items()}
    assert analysis.ledger.total(ranks) == sum(parameter.numel() for parameter in clone.parameters())
    assert analysis.ledger.total({}) == program.parameter_count()
    assert_equal(program, program.with_graph(clone))


@pytest.mark.parametrize("name", ON_CODES)
def test_what_was_kept_on_codes_is_restored_exactly(name: str) -> None:
    function = ON_CODES[name][0]

    def without_linear(x: Looked) -> Tensor:
        return function(Looked(x.own, x.rows, x.stacked, x.dense, torch.relu, x.narrow))

    program = build(without_linear, 1)
    sink, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    assert {verdict.fate for verdict in sink.verdicts} >= {Fate.ON_CODES, Fate.RESTORED}
