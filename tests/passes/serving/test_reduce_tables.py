from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from afm_fx.program.capture import capture
from passes.graph import clone_graph_module, get_attribute
from passes.serving import reduce_tables
from passes.serving.pack_tables import PackTables
from passes.serving.reduce_tables import ReduceTables
from passes.serving.table_format import TableFormat
from passes.serving.unpool_bags import UnpoolBags
from tests.passes.serving.test_pack_tables import Wide, wide_inputs
from tests.passes.serving_checks import operators

FORMATS = list(TableFormat)


class OneTable(nn.Module):
    def __init__(self, rows: Tensor, **settings: Any) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(rows, freeze=False, **settings)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


def one_table(rows: Tensor, **settings: Any) -> GraphModule:
    return capture(OneTable(rows, **settings), torch.tensor([0, 1, 1])).graph_module


def reduced(graph: GraphModule, table_format: TableFormat, smallest_bytes: int = 0) -> tuple[GraphModule, ReduceTables]:
    reduction = ReduceTables(table_format, smallest_bytes=smallest_bytes)
    return reduction(clone_graph_module(graph)).graph_module, reduction


def read_all(graph: GraphModule, rows: int) -> Tensor:
    with torch.no_grad():
        read: Tensor = graph(torch.arange(rows))
    return read


def test_float16_is_one_lookup_and_one_cast_and_rounds_every_entry_once():
    rows = torch.randn(50, 6)
    graph, reduction = reduced(one_table(rows), TableFormat.FLOAT16)
    assert operators(graph) == {"embedding": 1, "_to_copy": 1}
    assert torch.equal(read_all(graph, 50), rows.half().float())
    assert reduction.reduced == (("table.weight", "float16"),)
    assert get_attribute(graph, "table.float16.weight").dtype is torch.float16


def test_int8_is_two_lookups_a_cast_and_a_product_and_no_entry_is_off_by_more_than_half_a_step():
    rows = torch.randn(50, 6) * torch.logspace(-4, 4, 50).unsqueeze(1)
    graph, _ = reduced(one_table(rows), TableFormat.INT8)
    assert operators(graph) == {"embedding": 2, "_to_copy": 1, "mul": 1}
    assert sum(parameter.nbytes for parameter in graph.parameters()) == 50 * 6 + 50 * 4
    step = rows.abs().amax(1, keepdim=True) / 127
    error = (read_all(graph, 50) - rows).abs()
    assert bool((error <= 0.5001 * step).all())
    assert bool((error > 0.1 * step).any())  # it is stored in int8 indeed
    whole = get_attribute(graph, "table.int8.weight")
    assert whole.dtype is torch.int8
    assert bool((whole.abs().amax(1) == 127).all())


def test_a_small_column_keeps_digits_of_its_own():
    rows = torch.randn(400, 6)
    rows[:, 5] *= 1e-3  # a linear term beside an embedding
    graph, _ = reduced(one_table(rows), TableFormat.INT8)
    assert operators(graph)["mul"] == 2
    error = (read_all(graph, 400) - rows).square().mean(0).sqrt() / rows.square().mean(0).sqrt()
    assert bool((error < 0.02).all())
    assert float(error[5]) > 0


@pytest.mark.parametrize("table_format", FORMATS)
def test_rows_of_zeros_stay_exactly_zero(table_format: TableFormat):
    rows = torch.randn(20, 8)
    rows[[0, 7]] = 0
    rows[:, 3] = 0
    graph, _ = reduced(one_table(rows, padding_idx=0), table_format)
    read = read_all(graph, 20)
    assert not bool(read[[0, 7]].any())
    assert not bool(read[:, 3].any())


@given(
    scale=st.floats(-30, 20).map(lambda exponent: 10.0**exponent),
    spread=st.floats(0, 6),
    width=st.integers(5, 9),
    seed=st.integers(0, 10_000),
)
def test_int8_rows_are_near_at_any_size_of_rows_and_columns(scale: float, spread: float, width: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(30, width, generator=generator, dtype=torch.float64) * scale
    rows *= 10.0 ** -(spread * torch.rand(width, generator=generator, dtype=torch.float64))
    parts = reduce_tables._in_int8(rows)
    columns = parts.get("columns", torch.ones(width).double())
    read = parts["weight"].double() * parts["scales"] * columns
    step = (rows / columns).abs().amax(1, keepdim=True) / 127 * columns
    assert bool(((read - rows).abs() <= 0.5001 * step).all())
    assert bool((columns.log2() == columns.log2().round()).all())


def test_blocks_of_rows_give_what_the_whole_table_gives(monkeypatch: pytest.MonkeyPatch):
    graph = one_table(torch.randn(23, 8))
    for table_format in FORMATS:
        whole, _ = reduced(graph, table_format)
        with monkeypatch.context() as patched:
            patched.setattr(reduce_tables, "ROWS_PER_BLOCK", 5)
            pieces, _ = reduced(graph, table_format)
        assert torch.equal(read_all(whole, 23), read_all(pieces, 23))


def test_a_narrow_table_is_stored_in_float16_where_int8_would_be_no_smaller():
    for width, stored in ((1, "float16"), (4, "float16"), (5, "int8")):
        graph, reduction = reduced(one_table(torch.randn(40, width)), TableFormat.INT8)
        assert reduction.reduced[0][1] == stored
        assert sum(parameter.nbytes for parameter in graph.parameters()) < 40 * width * 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids) @ self.table.weight.T


def test_tables_that_stay_are_left_alone_with_the_reason():
    def kept(graph: GraphModule, table_format: TableFormat, smallest_bytes: int = 0) -> tuple[tuple[str, str], ...]:
        before = str(graph.graph)
        result, reduction = reduced(graph, table_format, smallest_bytes)
        assert not reduction.reduced
        assert str(result.graph) == before
        return reduction.kept

    name = "table.weight"
    tied = capture(Tied(), torch.tensor([0, 1])).graph_module
    assert kept(tied, TableFormat.INT8) == ((name, reduce_tables.OTHER_USE),)
    rows = torch.randn(10, 6)
    assert "240 bytes, fewer than the 241" in kept(one_table(rows), TableFormat.INT8, 241)[0][1]
    assert "float16 already" in kept(one_table(rows.half()), TableFormat.INT8)[0][1]
    rows[3, 2] = 1e5
    assert kept(one_table(rows), TableFormat.FLOAT16) == ((name, reduce_tables.TOO_LARGE),)
    rows[3, 2] = torch.nan
    for table_format in FORMATS:
        assert kept(one_table(rows), table_format) == ((name, reduce_tables.TOO_LARGE),)


def test_a_table_looked_up_twice_is_reduced_once():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x[:, 0]) - self.table(x[:, 1])

    graph = capture(Shared(), torch.zeros(2, 2, dtype=torch.int64)).graph_module
    for table_format in FORMATS:
        result, reduction = reduced(graph, table_format)
        assert len(reduction.reduced) == 1
        same = torch.arange(20).unsqueeze(1).expand(20, 2)
        assert not bool(result(same).any())
        assert sum(1 for each in result.parameters() if each.dtype in (torch.int8, torch.float16)) == 1


@pytest.mark.parametrize("table_format", FORMATS)
def test_unpacked_and_packed_tables_are_reduced_alike(table_format: TableFormat):
    graph = capture(Wide((8,) * 6).eval(), tuple(each.float() for each in wide_inputs(3))).graph_module
    (x,) = wide_inputs(50)
    x = x.float()
    unpacked, reduction = reduced(graph, table_format)
    assert len(reduction.reduced) == 12
    assert operators(unpacked)["embedding"] == (12 if table_format is TableFormat.FLOAT16 else 18)
    assert float((unpacked(x) - graph(x)).abs().max()) < 0.2
    done = PackTables()(clone_graph_module(graph))
    assert done is not None
    packed = done.graph_module
    result, reduction = reduced(packed, table_format)
    assert [name for name, _ in reduction.reduced] == ["packed_table.weight"]
    difference = float((result(x) - packed(x)).abs().max())
    assert 0 < difference < 0.2


@pytest.mark.parametrize("table_format", FORMATS)
def test_bags_are_reduced_once_they_are_lookups(table_format: TableFormat):
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(30, 8, mode="mean", padding_idx=0)

        def forward(self, ids: Tensor) -> Tensor:
            return self.bag(ids)

    graph = capture(Bag(), torch.randint(0, 30, (3, 4))).graph_module
    as_bag, reduction = reduced(graph, table_format)
    assert not reduction.reduced
    UnpoolBags()(as_bag)
    result, reduction = reduced(as_bag, table_format)
    assert len(reduction.reduced) == 1
    ids = torch.randint(0, 30, (40, 4))
    difference = float((result(ids) - graph(ids)).abs().max())
    assert 0 < difference < 0.02


@pytest.mark.parametrize("table_format", FORMATS)
def test_a_second_run_changes_nothing(table_format: TableFormat):
    once, _ = reduced(one_table(torch.randn(40, 8)), table_format)
    again = ReduceTables(table_format, smallest_bytes=0)
    assert not again(clone_graph_module(once)).modified
    assert not again.reduced


PEAK = """
import torch
from passes.serving.reduce_tables import _in_int8
torch.set_num_threads(1)
status = lambda: open("/proc/self/status").read()
peak = lambda: int(status().split("VmHWM:")[1].split()[0])
table = torch.rand(3_000_000, 16)
before = peak()
parts = _in_int8(table)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of a process's memory")
def test_memory_grows_by_the_reduced_table_and_not_by_a_copy_in_float64():
    done = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)  # noqa: S603 - ours
    grown = int(done.stdout) * 1024
    assert 0.5 * 3_000_000 * 20 < grown < 3_000_000 * 20 + 60_000_000  # the copy: 384,000,000
