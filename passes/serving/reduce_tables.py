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

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph import PROVENANCE, GraphPass, args_of, aten, call, constant_of, derived_name, parameter
from passes.serving.table_format import TableFormat

RULE = "reduce tables"
ROWS_PER_BLOCK = 16_384
SMALLEST_BYTES = 65_536
"""Tables below this stay as they are: they lie in the cache anyway, and each conversion is an operator more."""

LARGEST_INT8 = 127
COLUMN_RATIO = 8.0
"""Columns whose largest entries differ by more than this factor get scales of their own."""

OTHER_USE = "the model uses it otherwise than by looking rows up"
TOO_LARGE = "it holds values that are not finite, or beyond 65,504, the largest that float16 has"


class ReduceTables(GraphPass):
    """Stores looked-up tables in fewer bits.

    Replaces ``embedding(T, ids)`` with ``_to_copy(embedding(T16, ids), dtype)`` in float16, and
    with ``_to_copy(embedding(Q, ids), dtype) * embedding(s, ids)`` (and ``* c`` where columns differ) in int8.

    Attributes:
        reduced: (table, format) of the tables of the last run that are stored in fewer bits now.
        kept: (table, reason) of those that are looked up and stay as they are.
    """

    def __init__(self, table_format: TableFormat, *, smallest_bytes: int = SMALLEST_BYTES) -> None:
        super().__init__()
        self.table_format, self.smallest_bytes = table_format, smallest_bytes
        self.reduced: tuple[tuple[str, TableFormat], ...] = ()
        self.kept: tuple[tuple[str, str], ...] = ()

    def rewrite(self, graph_module: GraphModule) -> None:
        self.reduced = self.kept = ()
        for table, nodes in _tables(graph_module):
            name, stored = str(nodes[0].target), self._format_of(table, nodes)
            if isinstance(stored, TableFormat):
                _replace_lookups(graph_module, nodes, stored, table)
                self.reduced += ((name, stored),)
            else:
                self.kept += ((name, stored),)

    def _format_of(self, table: Tensor, nodes: list[Node]) -> TableFormat | str:
        """The format that a table is stored in, or why it stays as it is."""
        width, size = table.shape[1], table.element_size()
        if not all(_looks_up(user, node) for node in nodes for user in node.users):
            return OTHER_USE
        if not table.is_floating_point() or size <= 2:
            return f"it is stored in {str(table.dtype).removeprefix('torch.')} already"
        if table.nbytes < self.smallest_bytes:
            return f"it has {table.nbytes:,} bytes, fewer than the {self.smallest_bytes:,} from which on it pays"
        # A row takes width bytes and a scale in int8, two bytes a column in float16.
        stored = TableFormat.FLOAT16 if width + size >= 2 * width else self.table_format
        limit = torch.finfo(torch.float16 if stored is TableFormat.FLOAT16 else torch.float64).max
        return stored if bool((_column_maxima(table) <= limit).all()) else TOO_LARGE  # NaN is not below it either


def _tables(module: GraphModule) -> list[tuple[Tensor, list[Node]]]:
    """The tables that lookups read with the nodes that hold them, one that has several names once."""
    tables: dict[int, tuple[Tensor, list[Node]]] = {}
    for node in module.graph.nodes:
        tensor = constant_of(module, node)
        if tensor is not None and node.meta.get(PROVENANCE) != RULE:
            tables.setdefault(id(tensor), (tensor, []))[1].append(node)
    return [
        (tensor, nodes)
        for tensor, nodes in tables.values()
        if any(_looks_up(user, node) for node in nodes for user in node.users)
    ]


def _looks_up(user: Node, table: Node) -> bool:
    return user.target is aten.embedding.default and args_of(user)[0] is table and table not in args_of(user)[1:]


def _replace_lookups(module: GraphModule, nodes: list[Node], stored: TableFormat, table: Tensor) -> None:
    tensors = {"weight": table.detach().half()} if stored is TableFormat.FLOAT16 else _in_int8(table)
    weight, *scales = (
        parameter(module, derived_name(str(nodes[0].target), stored.value, part), tensor, rule=RULE, trainable=False)
        for part, tensor in tensors.items()
    )
    graph = module.graph
    for lookup in [user for node in nodes for user in node.users]:
        ids, options = args_of(lookup)[1:], lookup.kwargs
        with graph.inserting_before(lookup):
            rows = call(graph, aten.embedding.default, weight, *ids, rule=RULE, like=lookup, **options)
            rows = call(graph, aten._to_copy.default, rows, rule=RULE, like=lookup, dtype=table.dtype)
            for position, scale in enumerate(scales):  # those of rows, then those of columns, which hold for all rows
                factor = scale
                if position == 0:
                    factor = call(graph, aten.embedding.default, scale, *ids, rule=RULE, like=lookup, **options)
                rows = call(graph, aten.mul.Tensor, rows, factor, rule=RULE, like=lookup)
        lookup.replace_all_uses_with(rows)
        graph.erase_node(lookup)


def _blocks(table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows in float64, a block at a time: a copy of the whole table would take twice its memory."""
    for start in range(0, table.shape[0], ROWS_PER_BLOCK):
        rows = slice(start, start + ROWS_PER_BLOCK)
        yield rows, table.detach()[rows].double()


def _column_maxima(table: Tensor) -> Tensor:
    """float64 [width]: the largest magnitude in every column; NaN where a column holds one."""
    largest = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    for _, block in _blocks(table):
        # In place: a small tensor kept per block would sit between freed blocks, and memory would grow by them all.
        torch.maximum(largest, block.abs().amax(0), out=largest)
    return largest


def _in_int8(table: Tensor) -> dict[str, Tensor]:
    """``weight`` int8 [rows, width], ``scales`` [rows, 1] and, where columns differ much, ``columns`` [width]."""
    columns = _column_scales(_column_maxima(table))
    whole = torch.empty(table.shape, dtype=torch.int8, device=table.device)
    scales = torch.empty((table.shape[0], 1), dtype=table.dtype, device=table.device)
    for rows, block in _blocks(table):
        even = block / columns
        scales[rows] = (even.abs().amax(1, keepdim=True) / LARGEST_INT8).to(table.dtype)
        scale = scales[rows].double()
        steps = torch.where(scale > 0, even / scale, 0.0).round()
        whole[rows] = steps.clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8)
    parts = {"weight": whole, "scales": scales}
    if bool((columns != 1).any()):
        parts["columns"] = columns.to(table.dtype)
    return parts


def _column_scales(maxima: Tensor) -> Tensor:
    """float64 [width]: powers of two near the columns' sizes relative to the largest; ones where they differ little."""
    used = maxima[maxima > 0]
    if used.numel() == 0 or float(used.max() / used.min()) <= COLUMN_RATIO:
        return torch.ones_like(maxima)
    return torch.where(maxima > 0, torch.exp2((maxima / used.max()).clamp(min=1e-12).log2().round()), 1.0)
