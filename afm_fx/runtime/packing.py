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
from afm_fx.io import render_table
from afm_fx.program import Change, InputKind, Program, require_program, split_inputs
from passes.graph import FailedPass
from passes.serving import PackedTable, pack_graph
from passes.sites import OutOfRange


@dataclass(frozen=True)
class ServingSize:
    """What a program's graph holds: operators, how many of them look rows up in a table, bytes of state."""

    operators: int
    lookups: int
    state_bytes: int


@dataclass(frozen=True)
class PackReport:
    """What packing did.

    Attributes:
        before: the size of the program given.
        after: the size of the packed one.
        tables: the tables that were packed into one.
        failed: rewrites that failed and were undone, and why. The program is right without them, and slower: please
            report them.
    """

    before: ServingSize
    after: ServingSize
    tables: tuple[PackedTable, ...]
    failed: tuple[FailedPass, ...] = ()

    def table(self) -> str:
        """The report as text."""
        rows = [
            ("operators", f"{self.before.operators:,}", f"{self.after.operators:,}"),
            ("table lookups", f"{self.before.lookups:,}", f"{self.after.lookups:,}"),
            ("bytes", f"{self.before.state_bytes:,}", f"{self.after.state_bytes:,}"),
        ]
        lines = [render_table("", ("packing", "before", "after"), rows)]
        lines += [
            f"'{table.name}': {len(table.tables)} tables in {table.rows:,} rows x {table.width}, "
            f"{table.lookups} lookups in one, {table.padding:,} scalars of padding"
            for table in self.tables
        ]
        lines += [f"{each.name} failed and was left out: {each.reason}" for each in self.failed]
        return "\n".join(lines)


def pack(
    program: Program,
    *,
    out_of_range: str | OutOfRange = OutOfRange.UNCHECKED,
    inputs: str | InputKind = InputKind.ORIGINAL,
    free_sources: bool = False,
    strict: bool = False,
) -> Change[PackReport]:
    """Rewrites a program so that it serves fast; its outputs stay the same.

    All tables become one gather where widths and costs agree, Linears, batch-norms, scales and constants are folded
    into each other, and what only moves features about is done once. Each rewrite is kept where it is cheaper, so
    packing may find nothing to do; packing twice changes nothing. The program given is left as it is.

    Args:
        program: dense or low-rank.
        out_of_range: what a packed lookup does in an exported file with an id outside its table: "unchecked" (fastest;
            such an id reads other rows) or "error" (the runtime refuses the batch, as before packing).
        inputs: "original", or "typed": float inputs that carry ids become int64 ids and float features, see
            :func:`afm_fx.split_inputs`.
        free_sources: the tables of the program given become views of the packed ones, so that memory holds them once.
            For programs whose tables nobody else owns; by default they are copied.
        strict: raise where a rewrite fails. By default it is undone and left out, and the report names it.

    Returns:
        The packed program, and a report of what was packed.

    Raises:
        UserError: an unknown ``out_of_range`` or ``inputs``.
        PassError: a rewrite failed, where ``strict`` asks for it.
    """
    require_program(program, "afm_fx.pack")
    inputs = InputKind(inputs)
    choices = [choice.value for choice in OutOfRange]
    if out_of_range not in choices:
        raise UserError(f"out_of_range is one of {', '.join(choices)}, got {out_of_range!r}")
    before, choice = _size(program), OutOfRange(out_of_range)
    module, tables, failed = pack_graph(
        program.graph_module, out_of_range=choice, free_sources=free_sources, strict=strict
    )
    bounds = [bound for table in tables for bound in table.bounds]
    packed = replace(
        program.with_graph(module),
        id_bounds=(*program.id_bounds, *bounds),
        recipe=program.recipe.then("pack", out_of_range=choice.value),
    )
    if inputs is InputKind.TYPED:
        packed = split_inputs(packed)
    return Change(packed, PackReport(before, _size(packed), tables, failed))


def _size(program: Program) -> ServingSize:
    calls = [node for node in program.graph_module.graph.nodes if node.op == "call_function"]
    return ServingSize(len(calls), sum("embedding" in str(node.target) for node in calls), program.state_bytes())
