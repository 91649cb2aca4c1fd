"""Assertions on ids before lookups."""

from __future__ import annotations

import pytest
import torch

from passes.graph import aten, clone_graph_module
from passes.serving import assert_ids, pack_graph
from passes.sites import OutOfRange
from tests.passes.serving.test_pack_tables import SIZES, Wide, wide_inputs
from tests.passes.serving_checks import graph_of


def test_every_lookup_is_asserted_and_valid_ids_give_what_they_gave():
    graph = graph_of(Wide(), *wide_inputs(3))
    asserted = clone_graph_module(graph)
    assert_ids(asserted)
    targets = [node.target for node in asserted.graph.nodes]
    assert targets.count(torch.ops.aten._assert_async.msg) == targets.count(aten.embedding.default) == 2 * len(SIZES)
    batch = wide_inputs(9)
    torch.testing.assert_close(asserted(*batch), graph(*batch), rtol=0, atol=0)


@pytest.mark.parametrize("column", range(len(SIZES)))
def test_in_a_packed_table_the_bounds_of_the_tables_before_hold(column: int):
    packed, tables, _ = pack_graph(graph_of(Wide(), *wide_inputs(3)), out_of_range=OutOfRange.UNCHECKED)
    asserted = clone_graph_module(packed)
    assert_ids(asserted, [bound for table in tables for bound in table.bounds])
    for bad in (-1, SIZES[column]):
        (batch,) = wide_inputs(4)
        batch[2, column] = bad
        with pytest.raises(RuntimeError, match="input 'x' is outside the table of its column"):
            asserted(batch)
    (batch,) = wide_inputs(4)
    batch[:, column] = SIZES[column] - 1
    torch.testing.assert_close(asserted(batch), packed(batch), rtol=0, atol=0)
