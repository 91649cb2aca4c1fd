from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_fx.program.capture import capture
from passes.graph import get_attribute
from passes.graph.provenance import FeatureColumns
from passes.serving.collapse_moves import CollapseMoves
from passes.serving.pack_tables import PackTables, _Packing
from passes.sites.id_bounds import OutOfRange
from tests.passes.serving_checks import graph_of, operators, rewritten

SIZES = (7, 11, 5, 13, 9, 6)
DENSE = 3


class Wide(nn.Module):
    """Embedding and linear term of every field, as deepctr-torch writes them: ids in a float matrix, cut per field."""

    def __init__(self, widths: tuple[int, ...] = (4,) * len(SIZES)) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for rows, width in zip(SIZES, widths, strict=True))
        self.weights = nn.ModuleList(nn.Embedding(rows, 1) for rows in SIZES)
        self.first = nn.Linear(sum(widths) + DENSE, 8)

    def weight(self, kind: str, field: int) -> Tensor:
        """The table of a field: "tables" or "weights"."""
        return self.get_parameter(f"{kind}.{field}.weight")

    def forward(self, x: Tensor) -> Tensor:
        ids = [x[:, field : field + 1].long() for field in range(len(SIZES))]
        features = torch.cat([table(each) for table, each in zip(self.tables, ids, strict=True)], dim=-1)
        linear = torch.cat([table(each) for table, each in zip(self.weights, ids, strict=True)], dim=-1).sum(-1)
        return (
            self.first(torch.cat([features.flatten(1), x[:, len(SIZES) :]], dim=1)).relu().sum(1, keepdim=True) + linear
        )


def wide_inputs(rows: int) -> tuple[Tensor, ...]:
    ids = torch.stack([torch.randint(0, size, (rows,)) for size in SIZES], dim=1)
    return (torch.cat([ids, torch.randn(rows, DENSE)], dim=1).double(),)


def test_twelve_lookups_end_as_one_gather_whose_slices_and_casts_are_one():
    graph = graph_of(Wide(), *wide_inputs(3))
    pack = PackTables()
    packed = rewritten(graph, pack, CollapseMoves(), inputs=wide_inputs)
    assert operators(graph)["embedding"] == 12
    counts = operators(packed)
    assert (counts["embedding"], counts["_to_copy"], counts["cat"]) == (1, 1, 1)
    assert counts["slice"] == 4  # ids, dense features, embeddings, linear terms
    (table,) = pack.packed
    assert (table.rows, table.width, table.lookups, table.padding) == (sum(SIZES), 5, 12, 0)


def test_gathered_rows_are_the_tables_bit_by_bit():
    model = Wide()
    graph = graph_of(model, *wide_inputs(3))
    packed = rewritten(graph, PackTables(), inputs=wide_inputs)
    table = get_attribute(packed, "packed_table.weight")
    rows = [
        torch.cat([model.weight("weights", field), model.weight("tables", field)], 1) for field in range(len(SIZES))
    ]
    assert torch.equal(table, torch.cat(rows))


def test_neighbouring_widths_are_padded_and_distant_ones_keep_a_gather_each():
    close = PackTables()
    rewritten(graph_of(Wide((4, 4, 4, 3, 3, 3)), *wide_inputs(3)), close, inputs=wide_inputs)
    assert [(table.width, table.lookups) for table in close.packed] == [(5, 12)]
    assert close.packed[0].padding == sum(SIZES[3:])


def test_padding_never_costs_more_than_an_eighth_of_large_tables():
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.ModuleList(nn.Embedding(20_000, 2) for _ in range(6))
            self.wide = nn.ModuleList(nn.Embedding(10, 16) for _ in range(6))

        def forward(self, ids: Tensor) -> Tensor:
            tables = [*self.narrow, *self.wide]
            return torch.cat([table(ids[:, field]) for field, table in enumerate(tables)], dim=1).relu()

    pack = PackTables()
    inputs = lambda rows: (torch.randint(0, 10, (rows, 12)),)  # noqa: E731
    packed = rewritten(graph_of(Uneven(), *inputs(3)), pack, CollapseMoves(), inputs=inputs)
    assert sorted((table.width, table.padding) for table in pack.packed) == [(2, 0), (16, 0)]
    assert operators(packed)["embedding"] == 2


class Shared(nn.Module):
    """One table read by a field and by a history of its kind, with offsets added to stacked ids."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(30, 4)
        self.other = nn.ModuleList(nn.Embedding(8, 4) for _ in range(4))
        self.starts: Tensor
        self.register_buffer("starts", torch.tensor([0, 10, 20]))

    def forward(self, ids: Tensor, history: Tensor) -> Tensor:
        others = [table(ids[:, field]) for field, table in enumerate(self.other)]
        return torch.cat([*others, self.item(history + self.starts).flatten(1), self.item(ids[:, 0])], dim=1).relu()


def shared_inputs(rows: int) -> tuple[Tensor, ...]:
    return torch.randint(0, 8, (rows, 4)), torch.randint(0, 10, (rows, 3))


def test_a_shared_table_is_stored_once_and_constant_offsets_are_taken_in():
    pack = PackTables()
    packed = rewritten(graph_of(Shared(), *shared_inputs(3)), pack, CollapseMoves(), inputs=shared_inputs)
    assert operators(packed)["embedding"] == 1
    assert operators(packed)["add"] == 1
    assert pack.packed[0].rows == 30 + 4 * 8


def test_a_rewrite_that_would_not_pay_is_not_made():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Embedding(5, 4), nn.Embedding(6, 4)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return torch.cat([self.one(left), self.other(right)], dim=1).relu()

    pack = PackTables()
    inputs = lambda rows: (torch.randint(0, 5, (rows,)), torch.randint(0, 5, (rows,)))  # noqa: E731
    packed = rewritten(graph_of(Two(), *inputs(3)), pack, inputs=inputs)
    assert pack.packed == ()
    assert operators(packed)["embedding"] == 2


def test_freed_sources_are_views_of_the_packed_table_and_keep_their_values():
    model = Wide()
    graph = graph_of(model, *wide_inputs(3))
    sources = [model.weight("tables", field) for field in range(len(SIZES))]
    values = [source.detach().clone() for source in sources]
    done = PackTables(free_sources=True)(graph)
    assert done is not None
    packed = done.graph_module
    table = get_attribute(packed, "packed_table.weight")
    for source, value in zip(sources, values, strict=True):
        assert torch.equal(source, value)
        assert source.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()


@pytest.mark.parametrize("choice", list(OutOfRange))
def test_valid_ids_give_the_same_whatever_is_done_with_others(choice):
    graph = graph_of(Wide(), *wide_inputs(3))
    packed = rewritten(graph, PackTables(out_of_range=choice), CollapseMoves(), inputs=wide_inputs)
    assert operators(packed)["embedding"] == 1


@pytest.mark.parametrize("bad", [-2, -1, SIZES[1], SIZES[1] + 1, 10**6])
def test_an_id_outside_its_table_is_refused_where_asked_for_and_reads_no_other_table(bad):
    graph = graph_of(Wide(), *wide_inputs(3))
    (spoilt,) = wide_inputs(4)
    spoilt[2, 1] = bad
    packed = rewritten(graph, PackTables(out_of_range=OutOfRange.ERROR), inputs=wide_inputs)
    with pytest.raises(IndexError):
        packed(spoilt)


def test_gradients_reach_the_packed_table_row_by_row():
    packed = rewritten(graph_of(Wide(), *wide_inputs(3)), PackTables(), CollapseMoves(), inputs=wide_inputs)
    (x,) = wide_inputs(4)
    packed(x).sum().backward()
    gradient = get_attribute(packed, "packed_table.weight").grad
    starts = torch.tensor([0, *SIZES[:-1]]).cumsum(0)
    touched = (x[:, : len(SIZES)].long() + starts).unique()
    assert set(gradient[:, -1].nonzero().flatten().tolist()) == set(touched.tolist())


class SeparateInputs(nn.Module):
    """Every field is an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20 + field, 4) for field in range(8))
        self.head = nn.Linear(32, 1)

    def forward(self, a, b, c, d, e, f, g, h):  # noqa: PLR0917
        ids = (a, b, c, d, e, f, g, h)
        return self.head(torch.cat([table(each) for table, each in zip(self.tables, ids, strict=True)], 1))


def separate_inputs(rows: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randint(20, (rows,)) for _ in range(8))


def test_fields_that_are_inputs_of_their_own_are_joined_by_one_concat():
    graph = graph_of(SeparateInputs(), *separate_inputs(3))
    result = rewritten(graph, PackTables(), CollapseMoves(), inputs=separate_inputs)
    found = operators(result)
    assert found["embedding"] == found["cat"] == found["transpose"] == found["add"] == 1
    assert "unsqueeze" not in found


class LateIds(nn.Module):
    """The second id is computed after the features of the first are used."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, 4) for _ in range(2))
        self.head = nn.Linear(8, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        first = self.tables[0](ids[:, 0]).relu()
        second = self.tables[1](ids[:, 1] % 5)
        return self.head(torch.cat([first, second.relu()], 1))


def test_the_gather_stands_between_the_last_id_and_the_first_use_of_a_feature():
    def inputs(rows: int) -> tuple[torch.Tensor]:
        return (torch.randint(9, (rows, 2)),)

    graph = graph_of(LateIds(), *inputs(3))
    packing = _Packing(graph, [lookup.name for lookup in FeatureColumns(graph).lookups()], OutOfRange.UNCHECKED)
    packing.run()
    graph.graph.lint()
    assert operators(graph)["embedding"] == 1


class ClusterIds(nn.Module):
    """Three tables of one width; the ids of the last are rows of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, 1) for _ in range(3))
        self.tables[0].weight.data = torch.randint(9, (9, 1)).float()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        cluster = self.tables[0](ids[:, 0])
        return torch.cat([cluster, self.tables[1](ids[:, 1]), self.tables[2](cluster[:, 0].long())], 1)


def test_a_table_whose_ids_are_rows_of_another_is_left_apart():
    def inputs(rows: int) -> tuple[torch.Tensor]:
        return (torch.randint(9, (rows, 2)),)

    pack = PackTables()
    result = rewritten(graph_of(ClusterIds(), *inputs(3)), pack, CollapseMoves(), inputs=inputs)
    assert operators(result)["embedding"] == 2
    assert [set(table.tables) for table in pack.packed] == [{"tables.0.weight", "tables.1.weight"}]


class TwoFormats(nn.Module):
    """The same ids read a table of float64 and one of float32, converted after the lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Embedding(9, 4) for _ in range(4))
        self.narrow = nn.ParameterList(nn.Parameter(torch.randn(9, 4)) for _ in range(4))
        self.head = nn.Linear(32, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = [table(ids[:, field]) for field, table in enumerate(self.wide)]
        rows += [nn.functional.embedding(ids[:, field], table).double() for field, table in enumerate(self.narrow)]
        return self.head(torch.cat(rows, 1))


def test_tables_of_different_number_formats_never_share_a_row():
    def inputs(rows: int) -> tuple[torch.Tensor]:
        return (torch.randint(9, (rows, 4)),)

    model = TwoFormats().double()
    for field in range(4):
        model.narrow[field] = nn.Parameter(torch.randn(9, 4, dtype=torch.float32))
    graph = capture(model.eval(), inputs(3)).graph_module
    pack = PackTables()
    result = rewritten(graph, pack, inputs=inputs)
    assert operators(result)["embedding"] < 8
    assert pack.packed
    for table in pack.packed:
        assert len({name.split(".")[0] for name in table.tables}) == 1
