"""Packs a program for serving: the graph that an expert would have built by hand, with the same outputs.

Packing changes the form and nothing else: rows are copied bit by bit, and what is computed in advance (folded
batch-norms, products of Linears, squared norms of rows) is computed in float64. It works on any program,
low-rank or not.

Ids outside their table are the one thing that packing could change: in a packed table they would read another table's
rows. ``Program.run`` refuses them as before. An exported file has no such check unless ``out_of_range`` asks for one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from afm_fx.errors import UserError
from afm_fx.program import Program
from afm_fx.tables import render_table
from afm_fx.typed_inputs import InputKind, check_inputs, split_inputs
from passes.id_bounds import OutOfRange
from passes.pack_tables import PackedTable
from passes.serve import serve


@dataclass(frozen=True)
class PackReport:
    """What packing did.

    Attributes:
        nodes_before: operators of the program given.
        nodes_after: operators of the packed one.
        lookups_before: table lookups of the program given.
        lookups_after: table lookups of the packed one.
        bytes_before: bytes of the state of the program given.
        bytes_after: bytes of the state of the packed one.
        tables: the packed tables.
    """

    nodes_before: int
    nodes_after: int
    lookups_before: int
    lookups_after: int
    bytes_before: int
    bytes_after: int
    tables: tuple[PackedTable, ...]

    def table(self) -> str:
        """The report as text."""
        rows = [
            ("operators", f"{self.nodes_before:,}", f"{self.nodes_after:,}"),
            ("table lookups", f"{self.lookups_before:,}", f"{self.lookups_after:,}"),
            ("bytes", f"{self.bytes_before:,}", f"{self.bytes_after:,}"),
        ]
        lines = [render_table("", ("packing", "before", "after"), rows)]
        lines += [
            f"'{table.name}': {len(table.tables)} tables in {table.rows:,} rows x {table.width}, "
            f"{table.lookups} lookups in one, {table.padding:,} scalars of padding"
            for table in self.tables
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Packed:
    """A packed program and what was done."""

    program: Program
    report: PackReport


def pack(
    program: Program,
    *,
    out_of_range: str | OutOfRange = OutOfRange.UNCHECKED,
    inputs: str | InputKind = InputKind.ORIGINAL,
) -> Program:
    """Rewrites a program so that it serves fast; its outputs stay the same.

    All tables become one gather where widths and costs agree, Linears, batch-norms, scales and constants are folded
    into each other, and what only moves features about is done once. Each rewrite is kept where it is cheaper, so
    packing may find nothing to do. Parameters are copied, the program given is left as it is.

    Args:
        program: dense or low-rank.
        out_of_range: what a packed lookup does in an exported file with an id outside its table: "unchecked" (fastest;
            such an id reads other rows), "error" (the runtime refuses the batch, as before packing), "clamp" (the
            nearest row of the table) or "padding-row" (zeros).
        inputs: "original", or "typed": float inputs that carry ids become int64 ids and float features, see
            :func:`afm_fx.split_inputs`.

    Raises:
        UserError: an unknown ``out_of_range`` or ``inputs``.
    """
    return pack_reported(program, out_of_range=out_of_range, inputs=inputs).program


def pack_reported(
    program: Program,
    *,
    out_of_range: str | OutOfRange = OutOfRange.UNCHECKED,
    free_sources: bool = False,
    inputs: str | InputKind = InputKind.ORIGINAL,
) -> Packed:
    """:func:`pack` with a report.

    Args:
        program: dense or low-rank.
        out_of_range: see :func:`pack`.
        free_sources: the tables of the program given become views of the packed ones, so that memory holds them once.
            For programs whose tables nobody else owns.
        inputs: see :func:`pack`.

    Raises:
        UserError: an unknown ``out_of_range`` or ``inputs``.
    """
    check_inputs(inputs)
    choices = [choice.value for choice in OutOfRange]
    if out_of_range not in choices:
        raise UserError(f"out_of_range is one of {', '.join(choices)}, got {out_of_range!r}")
    before = _counts(program)
    choice = OutOfRange(out_of_range)
    served = serve(program.graph_module, out_of_range=choice, free_sources=free_sources)
    bounds = tuple(bound for table in served.tables for bound in table.bounds) if choice in _REFUSED else ()
    packed = replace(
        program.with_graph(served.module),
        id_bounds=(*program.id_bounds, *bounds),
        recipe=program.recipe.then("pack", out_of_range=choice.value),
    )
    if inputs == InputKind.TYPED:
        packed = split_inputs(packed)
    after = _counts(packed)
    return Packed(packed, PackReport(before[0], after[0], before[1], after[1], before[2], after[2], served.tables))


_REFUSED = (OutOfRange.UNCHECKED, OutOfRange.ERROR)
"""Choices under which ``Program.run`` refuses an id outside its table."""


def _counts(program: Program) -> tuple[int, int, int]:
    """Operators, lookups and bytes of a program."""
    calls = [node for node in program.graph_module.graph.nodes if node.op == "call_function"]
    return len(calls), sum("embedding" in str(node.target) for node in calls), program.state_bytes()
