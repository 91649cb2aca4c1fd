"""Stores tables in fewer bits; only the rows that a batch reads are converted back.

A served table is read a few rows at a time, so that what counts is its size in memory and in the cache. Each row is
converted right after it was gathered, and everything behind computes in the number format it computed in before.

*float16* keeps 11 significant bits of every value between 6e-5 and 65,504: the relative error is at most 2^-11.

*int8* stores row ``t`` as ``q = round(t / (s c))`` with one scale ``s`` per row and, where the columns differ much,
one power of two ``c`` per column, so that a small column (a linear term beside an embedding, say) keeps digits of its
own. ``s`` is chosen so that the largest ``|q|`` of a row is 127; then no entry is off by more than ``s c / 2`` (and a
row of zeros stays exactly zero). Powers of two multiply without an error of their own.

A table of few columns is not smaller in int8, for the scale takes as much as the entries save; it is stored in
float16 then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from passes.graph_pass import GraphPass
from passes.graph_tools import PROVENANCE, args_of, aten, call, constant_of, derived_name, finish, parameter

RULE = "reduce tables"
ROWS_PER_BLOCK = 16_384
SMALLEST_BYTES = 65_536
"""Tables below this stay as they are: they lie in the cache anyway, and each conversion is an operator more."""

LARGEST_INT8 = 127
COLUMN_RATIO = 8.0
"""Columns whose largest entries differ by more than this factor get scales of their own."""

OTHER_USE = "the model uses it otherwise than by looking rows up"
NOT_FINITE = "it holds values that are not finite"
BEYOND_FLOAT16 = "it holds values beyond 65,504, the largest that float16 has"


class TableFormat(StrEnum):
    """How the numbers of a table are stored."""

    FLOAT16 = "float16"
    INT8 = "int8"


@dataclass(frozen=True)
class ReducedTable:
    """One table that was stored in fewer bits.

    Attributes:
        name: the table's name before.
        rows: its rows.
        width: its columns.
        stored: the format it is stored in now.
        column_scales: whether columns have scales of their own, which costs one multiplication more.
        lookups: lookups that read it.
        bytes_before: its bytes before.
        bytes_after: its bytes now, scales included.
        largest_row_error: largest Euclidean distance between a row and what is read instead.
        rms_row_error: root of the mean square of these distances over all rows.
        rms_row: root mean square of the rows' Euclidean lengths, to compare with.
    """

    name: str
    rows: int
    width: int
    stored: TableFormat
    column_scales: bool
    lookups: int
    bytes_before: int
    bytes_after: int
    largest_row_error: float
    rms_row_error: float
    rms_row: float


class ReduceTables(GraphPass):
    """Stores looked-up tables in fewer bits.

    Replaces ``embedding(T, ids)`` with ``_to_copy(embedding(T16, ids), dtype)`` in float16, and
    with ``_to_copy(embedding(Q, ids), dtype) * embedding(s, ids)`` (and ``* c`` where columns differ) in int8.

    Args:
        table_format: the format wanted.
        smallest_bytes: tables of fewer bytes stay as they are.
    """

    def __init__(self, table_format: TableFormat, *, smallest_bytes: int = SMALLEST_BYTES) -> None:
        super().__init__()
        self.table_format = table_format
        self.smallest_bytes = smallest_bytes
        self.reduced: tuple[ReducedTable, ...] = ()
        self.kept: tuple[tuple[str, str], ...] = ()
        """(table, reason) of the tables that were looked up and stay as they are."""

    def call(self, graph_module: GraphModule) -> PassResult:
        reduced, kept = [], []
        for table in list(_tables(graph_module)):
            stored = self._format_of(table)
            if isinstance(stored, TableFormat):
                reduced.append(_reduce(graph_module, table, stored))
            else:
                kept.append((table.name, stored))
        finish(graph_module)
        self.reduced, self.kept = tuple(reduced), tuple(kept)
        return PassResult(graph_module, bool(reduced))

    def _format_of(self, table: _Table) -> TableFormat | str:
        """The format that a table is stored in, or why it stays as it is."""
        tensor = table.tensor
        before = tensor.numel() * tensor.element_size()
        if not table.only_looked_up:
            return OTHER_USE
        if not tensor.is_floating_point() or tensor.element_size() <= 2:
            return f"it is stored in {str(tensor.dtype).removeprefix('torch.')} already"
        if before < self.smallest_bytes:
            return f"it has {before:,} bytes, fewer than the {self.smallest_bytes:,} from which on tables are reduced"
        stored = self.table_format
        if stored is TableFormat.INT8 and tensor.shape[1] + tensor.element_size() >= 2 * tensor.shape[1]:
            stored = TableFormat.FLOAT16
        largest = table.column_maxima()
        if not bool(largest.isfinite().all()):
            return NOT_FINITE
        if stored is TableFormat.FLOAT16 and float(largest.max()) > torch.finfo(torch.float16).max:
            return BEYOND_FLOAT16
        return stored


@dataclass
class _Table:
    """A tensor whose rows are looked up.

    Attributes:
        name: of the tensor, the first that the graph uses.
        tensor: [rows, width].
        nodes: all nodes that hold it.
    """

    name: str
    tensor: Tensor
    nodes: list[Node] = field(default_factory=list)

    @property
    def lookups(self) -> list[Node]:
        """The nodes that look rows up."""
        return [user for node in self.nodes for user in node.users if _looks_up(user, node)]

    @property
    def only_looked_up(self) -> bool:
        """Whether nothing else reads the tensor."""
        return all(_looks_up(user, node) for node in self.nodes for user in node.users)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows in float64, a block at a time."""
        for start in range(0, self.tensor.shape[0], ROWS_PER_BLOCK):
            rows = slice(start, start + ROWS_PER_BLOCK)
            yield rows, self.tensor.detach()[rows].double()

    def column_maxima(self) -> Tensor:
        """float64 [width]: the largest magnitude in every column; NaN where a column holds one."""
        largest = torch.zeros(self.tensor.shape[1], dtype=torch.float64, device=self.tensor.device)
        for _, block in self.blocks():
            # In place: a small tensor kept per block would sit between freed blocks, and memory would grow by them all.
            torch.maximum(largest, block.abs().amax(0), out=largest)
        return largest


def _tables(module: GraphModule) -> Iterator[_Table]:
    """The tables that lookups read, one that has several names once."""
    found: dict[int, _Table] = {}
    for node in module.graph.nodes:
        tensor = constant_of(module, node)
        if tensor is not None and node.meta.get(PROVENANCE) != RULE:
            found.setdefault(id(tensor), _Table(str(node.target), tensor)).nodes.append(node)
    return (table for table in found.values() if table.lookups)


def _looks_up(user: Node, table: Node) -> bool:
    return user.target is aten.embedding.default and args_of(user)[0] is table and table not in args_of(user)[1:]


def _reduce(module: GraphModule, table: _Table, stored: TableFormat) -> ReducedTable:
    """Replaces a table and its lookups."""
    lookups, name, errors = table.lookups, table.name, _RowErrors()
    parts = _in_float16(table, errors) if stored is TableFormat.FLOAT16 else _in_int8(table, errors)
    made = [
        parameter(
            module, derived_name(name, stored.value, part), tensor, rule=RULE,
            trainable=stored is TableFormat.FLOAT16 and table.tensor.requires_grad,
        )
        for part, tensor in parts.items()
    ]  # fmt: skip
    for node in lookups:
        with module.graph.inserting_before(node):
            restored = _restored(node, made, table.tensor.dtype)
        node.replace_all_uses_with(restored)
        module.graph.erase_node(node)
    return ReducedTable(
        name=name,
        rows=table.tensor.shape[0],
        width=table.tensor.shape[1],
        stored=stored,
        column_scales="columns" in parts,
        lookups=len(lookups),
        bytes_before=table.tensor.numel() * table.tensor.element_size(),
        bytes_after=sum(tensor.numel() * tensor.element_size() for tensor in parts.values()),
        largest_row_error=errors.largest,
        rms_row_error=(errors.squares / table.tensor.shape[0]) ** 0.5,
        rms_row=(errors.lengths / table.tensor.shape[0]) ** 0.5,
    )


def _restored(lookup: Node, parts: list[Node], dtype: torch.dtype) -> Node:
    """The rows of a lookup, read from a reduced table."""
    graph, (table, *scales) = lookup.graph, parts
    ids = args_of(lookup)[1:]
    rows = call(graph, aten.embedding.default, table, *ids, rule=RULE, like=lookup, **lookup.kwargs)
    rows = call(graph, aten._to_copy.default, rows, rule=RULE, like=lookup, dtype=dtype)
    for position, scale in enumerate(scales):
        factor = scale
        if position == 0:
            factor = call(graph, aten.embedding.default, scale, *ids, rule=RULE, like=lookup, **lookup.kwargs)
        rows = call(graph, aten.mul.Tensor, rows, factor, rule=RULE, like=lookup)
    return rows


@dataclass
class _RowErrors:
    """Sums over rows, a block at a time."""

    largest: float = 0.0
    squares: float = 0.0
    lengths: float = 0.0

    def add(self, block: Tensor, restored: Tensor) -> None:
        """Compares a block with what will be read instead, both float64."""
        squares = (block - restored).square().sum(1)
        self.largest = max(self.largest, float(squares.max()) ** 0.5)
        self.squares += float(squares.sum())
        self.lengths += float(block.square().sum())


@torch.no_grad()
def _in_float16(table: _Table, errors: _RowErrors) -> dict[str, Tensor]:
    half = torch.empty(table.tensor.shape, dtype=torch.float16, device=table.tensor.device)
    for rows, block in table.blocks():
        half[rows] = block.half()
        errors.add(block, half[rows].double())
    return {"weight": half}


@torch.no_grad()
def _in_int8(table: _Table, errors: _RowErrors) -> dict[str, Tensor]:
    """``weight`` int8 [rows, width], ``scales`` [rows, 1] and, where columns differ much, ``columns`` [width]."""
    tensor = table.tensor
    columns = _column_scales(table.column_maxima())
    whole = torch.empty(tensor.shape, dtype=torch.int8, device=tensor.device)
    scales = torch.empty((tensor.shape[0], 1), dtype=tensor.dtype, device=tensor.device)
    for rows, block in table.blocks():
        even = block / columns
        scales[rows] = (even.abs().amax(1, keepdim=True) / LARGEST_INT8).to(tensor.dtype)
        scale = scales[rows].double()
        steps = torch.where(scale > 0, even / scale, 0.0).round()
        whole[rows] = steps.clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8)
        errors.add(block, whole[rows].double() * scale * columns)
    parts = {"weight": whole, "scales": scales}
    if bool((columns != 1).any()):
        parts["columns"] = columns.to(tensor.dtype)
    return parts


def _column_scales(maxima: Tensor) -> Tensor:
    """float64 [width]: powers of two near the columns' sizes relative to the largest; ones where they differ little."""
    used = maxima[maxima > 0]
    if used.numel() == 0 or float(used.max() / used.min()) <= COLUMN_RATIO:
        return torch.ones_like(maxima)
    return torch.where(maxima > 0, torch.exp2((maxima / used.max()).clamp(min=1e-12).log2().round()), 1.0)
