from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from afm_fx.program.capture import capture
from passes.graph import clone_graph_module
from passes.graph.errors import PassPostconditionError
from passes.graph.graph_pass import GraphPass
from passes.serving.collapse_moves import CollapseMoves
from passes.serving.pack_tables import PackTables
from passes.serving.typed_inputs import SplitInput, SplitInputs
from tests.passes.serving.test_pack_tables import SIZES, Wide, wide_inputs
from tests.passes.serving_checks import graph_of, operators

FIELDS = len(SIZES)


class Reads(nn.Module):
    """Two tables whose ids are columns of ``x``; what else is read of it is up to the subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Embedding(5, 3), nn.Embedding(7, 3)


class BothWays(Reads):
    """Column 1 is an id and a feature, column 2 is read by nothing, the ids are taken in the order 3, 1."""

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.stack([x[:, 3], x[:, 1]], dim=1).long()
        return self.one(ids).sum(dim=(1, 2)) + x[:, 0] * x[:, 1]


class OnlyIds(Reads):
    """Three axes, every column an id, read as int32."""

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x[:, 0].int()).sum((1, 2)) + self.other(x[:, 1].int()).sum((1, 2))


class TwoMatrices(Reads):
    """Ids of two matrices meet in one tensor before they are cast; one matrix has features too."""

    def forward(self, user: Tensor, item: Tensor, price: Tensor) -> Tensor:
        ids = torch.cat([user[:, :1], item], dim=1).long()
        return self.one(ids).sum((1, 2)) + user[:, 1] + price[:, 0] + user.new_zeros(user.shape[0], 1)[:, 0]


class ComputedIds(Reads):
    """The ids are computed from floats: they are no columns of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.one((x[:, 0] % 5).long()).sum(1) + x[:, 1]


class WholeMatrix(Reads):
    """The graph also returns its input and asks it for the batch size."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x[:, 0].long()).reshape(x.shape[0], -1), x


def split(graph: GraphModule) -> tuple[GraphModule, SplitInputs]:
    """The graph with typed inputs; a second run must find nothing."""
    made = SplitInputs()
    module = made(clone_graph_module(graph)).graph_module
    assert not SplitInputs()(clone_graph_module(module)).modified
    return module, made


def placeholders(module: GraphModule) -> dict[str, tuple[torch.dtype, tuple[Any, ...]]]:
    """Dtype and shape after the batch of every input; the batch must be one symbol."""
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    assert len({str(node.meta["val"].shape[0]) for node in nodes}) == 1
    assert all(isinstance(node.meta["val"].shape[0], torch.SymInt) for node in nodes)
    return {node.name: (node.meta["val"].dtype, tuple(node.meta["val"].shape[1:])) for node in nodes}


def test_a_matrix_becomes_ids_and_features_and_the_packed_table_reads_the_ids_as_they_are() -> None:
    graph = graph_of(Wide(), *wide_inputs(3))
    result = PackTables()(graph)
    assert result is not None
    packed = result.graph_module
    CollapseMoves()(packed)
    module, made = split(packed)
    assert made.made == (
        SplitInput("sparse", "x", tuple(range(FIELDS)), ids=True),
        SplitInput("dense", "x", tuple(range(FIELDS, FIELDS + 3)), ids=False),
    )
    assert placeholders(module) == {"sparse": (torch.int64, (FIELDS,)), "dense": (torch.float64, (3,))}
    assert operators(packed)["_to_copy"] == 1
    assert operators(packed)["slice"] - operators(module)["slice"] == 2
    assert operators(module)["_to_copy"] == 0


def test_the_outputs_are_the_same_at_other_batch_sizes() -> None:
    model = Wide()
    module, _ = split(graph_of(model, *wide_inputs(3)))
    for rows in (1, 8):
        (x,) = wide_inputs(rows)
        found = module(sparse=x[:, :FIELDS].long(), dense=x[:, FIELDS:])
        torch.testing.assert_close(found, model(x), rtol=1e-12, atol=1e-12)


def test_lookups_bound_the_ids_of_their_column() -> None:
    _, made = split(graph_of(Wide(), *wide_inputs(3)))
    ranges = {(each.input, each.column): (each.low, each.high) for each in made.bounds}
    assert ranges == {("sparse", field): (0, size) for field, size in enumerate(SIZES)}


def test_a_column_read_both_ways_is_in_both_an_unread_one_in_neither_and_ids_stand_in_their_readers_order() -> None:
    model = BothWays()
    x = torch.tensor([[0.5, 2.0, 9.0, 4.0], [1.5, 0.0, 9.0, 1.0]], dtype=torch.float64)
    module, made = split(graph_of(model, x))
    assert [each.columns for each in made.made] == [(3, 1), (0, 1)]
    left = operators(module)
    assert left["index_select"] + left["stack"] + left["cat"] == 0
    assert left["slice"] + left["select"] == 2  # the two features
    torch.testing.assert_close(module(sparse=x[:, [3, 1]].long(), dense=x[:, :2]), model(x))


def test_an_input_of_ids_alone_keeps_its_shape_and_other_integers_are_cast_from_int64() -> None:
    model, x = OnlyIds(), torch.randint(0, 5, (4, 2, 3)).double()
    module, made = split(graph_of(model, x))
    assert placeholders(module) == {"sparse": (torch.int64, (2, 3))}
    assert [each.columns for each in made.made] == [tuple(range(6))]
    dtypes = [node.meta["val"].dtype for node in module.graph.nodes if "_to_copy" in str(node.target)]
    assert dtypes == [torch.int32, torch.int32]
    torch.testing.assert_close(module(sparse=x.long()), model(x))


def test_inputs_of_several_matrices_are_told_apart_and_those_without_ids_are_left_alone() -> None:
    model = TwoMatrices()
    user, item, price = torch.tensor([[1.0, 0.25], [4, -0.5]]).double(), torch.ones(2, 2).double(), torch.rand(2, 1)
    module, made = split(graph_of(model, user, item, price.double()))
    assert placeholders(module) == {
        "user_sparse": (torch.int64, (1,)),
        "user_dense": (torch.float64, (1,)),
        "item_sparse": (torch.int64, (2,)),
        "price": (torch.float64, (1,)),
    }
    assert [each.source for each in made.made] == ["user", "user", "item"]
    found = module(
        user_sparse=user[:, :1].long(), user_dense=user[:, 1:], item_sparse=item.long(), price=price.double()
    )
    torch.testing.assert_close(found, model(user, item, price.double()))


def test_ids_that_are_computed_from_floats_leave_the_input_as_it_is() -> None:
    graph = graph_of(ComputedIds(), torch.rand(3, 2).double())
    before = str(graph.graph)
    made = SplitInputs()
    assert not made(graph).modified
    assert str(graph.graph) == before
    assert made.made == ()


def test_a_returned_input_is_assembled_of_the_features() -> None:
    model, x = WholeMatrix(), torch.tensor([[1.0, 7.5], [4.0, -1.0], [0.0, 2.0]], dtype=torch.float64)
    module, made = split(graph_of(model, x))
    assert [(each.name, each.columns) for each in made.made] == [("sparse", (0,)), ("dense", (0, 1))]
    found = module(sparse=x[:, :1].long(), dense=x)
    for one, other in zip(found, model(x), strict=True):
        torch.testing.assert_close(one, other)


def test_ids_beyond_2_to_the_24_stay_apart() -> None:
    class OneTable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(2**24 + 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x[:, 0].long()) + x[:, 1:]

    model = OneTable()
    model.table.weight.data = torch.arange(2**24 + 3).remainder(1024).float().unsqueeze(1)
    with pytest.warns(UserWarning, match="COLLIDE"):
        program = capture(model, torch.zeros(2, 2))
    ids = torch.tensor([[2**24 + 1], [2**24 + 2], [2**24]])
    collided = program.graph_module(torch.cat([ids.float(), torch.zeros(3, 1)], dim=1))
    assert collided[0] == collided[2]
    module, _ = split(program.graph_module)
    rows = module(sparse=ids, dense=torch.zeros(3, 1))
    assert rows.flatten().tolist() == [1.0, 2.0, 0.0]


def test_a_pass_that_says_it_keeps_the_inputs_may_not_change_them() -> None:
    class Careless(GraphPass):
        def rewrite(self, graph_module: GraphModule) -> None:
            SplitInputs().rewrite(graph_module)

    with pytest.raises(PassPostconditionError, match="the inputs were"):
        Careless()(graph_of(Wide(), *wide_inputs(3)))
