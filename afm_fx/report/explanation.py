"""Explains a model: every site, every use of it, what the pass would do there, and why. Needs no data.

As JSON an explanation is one document: ``version``, and the fields of :class:`Explanation` with those of the classes in
it, words of enumerations as strings. Within a version keys may be added, and none changes its meaning or goes; a reader
ignores the keys that it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from afm_fx.io import from_json, refuse_existing_file, render_sections, to_json, write_text
from afm_fx.planning import Plan
from afm_fx.program import Inputs, Program, capture, require_program
from afm_fx.report.chains import Chain, chains_of, groups_of, listed
from afm_fx.report.flow import FlowNode, flow_of
from afm_fx.report.page_templates import render_page
from passes.graph import clone_graph_module
from passes.laws import Fate
from passes.sink_codes import Analysis, analyze
from passes.sites import ONE_WIDE, DropUnits, JoinTables, Site, joinable_tables

VERSION = 2

PART = "one feature wide, factored only under one code with the tables that the same ids look up, where a plan says so"
"""Why a table of one feature is refused alone."""


@dataclass(frozen=True)
class Explanation:
    """What the pass would do with a model, and why.

    Attributes:
        operators: how many the captured graph has.
        front_door: how the model was captured.
        sites: the tables and Linears whose features may be factored, and those that are refused, in graph order.
        chains: one entry per use of each site; a refused site has one entry that says why.
        flow: the operators that features flow through, in graph order.
    """

    parameters: int
    operators: int
    front_door: str
    warnings: tuple[str, ...]
    sites: tuple[Site, ...]
    chains: tuple[Chain, ...]
    flow: tuple[FlowNode, ...]

    def uses(self, fate: Fate | str) -> int:
        """How many uses have this fate; each refused site counts once."""
        return sum(chain.verdict.fate is Fate(fate) for chain in self.chains)

    def table(self, *, width: int | None = None) -> str:
        """The explanation as text: sites with the same uses share a heading, with one line per use below.

        A line holds the verdict, the operator that takes the features, its source line and the reason. It is drawn for
        ``width`` columns; for those of the terminal, or 120, where left out.
        """
        if not self.sites:
            return "The model has no embedding table and no Linear whose features could be factored."
        groups = groups_of(self.chains)
        return render_sections(
            [(f"{listed([site.name for site in group.sites])}, {group.kind}", list(group.uses)) for group in groups],
            width=width,
        )

    def __str__(self) -> str:
        """The table."""
        return self.table()

    def to_json(self) -> str:
        """Everything as a JSON document, see the module for its schema; the same explanation gives the same text."""
        return to_json(self, VERSION)

    @staticmethod
    def from_json(text: str) -> Explanation:
        """Reads what :meth:`to_json` wrote.

        Raises:
            FileFormatError: the text is damaged, or of another kind or version.
        """
        return from_json(text, Explanation, VERSION, "the explanation")

    def save_json(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes :meth:`to_json` to a file.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
            UserError: nothing can be written there.
        """
        write_text(Path(path), self.to_json() + "\n", force=force)

    def to_html(self, path: str | os.PathLike[str], *, title: str = "Explanation", force: bool = False) -> None:
        """Writes one HTML file that needs nothing else: a picture of the flow of features, and every site and use.

        Graphviz lays the picture out; it comes with pygraphviz, in the extra ``report``.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
            UserError: nothing can be written there.
            MissingPackageError: the extra ``report`` is not installed.
        """
        refuse_existing_file(Path(path), force=force)
        write_text(Path(path), render_page("explanation.html", self, title=title), force=force)


def explain(model: nn.Module | ExportedProgram | Program, example_inputs: Inputs | None = None) -> Explanation:
    """Explains what the pass would do with every use of every site. Changes nothing and needs no data.

    Args:
        model: left as it is.
        example_inputs: one batch of at least 2 rows to capture with, of any values; needed for a module only.

    Raises:
        CaptureError: the model cannot be captured.
    """
    program = model if isinstance(model, Program) else capture(model, example_inputs)
    module = program.graph_module
    analysis = analyze(module)
    return _explanation(program, module, replace(analysis, sites=tuple(_as_parts(module, analysis.sites))))


def _as_parts(module: GraphModule, sites: Iterable[Site]) -> Iterator[Site]:
    """The sites, where a table of one feature that could be a part of a joint one says so."""
    parts = {name for joint in joinable_tables(module) for name in joint.tables}
    for site in sites:
        is_part = site.refusal == ONE_WIDE and site.name in parts
        yield replace(site, refusal=PART) if is_part else site


def explain_plan(program: Program, plan: Plan) -> Explanation:
    """Explains what a plan does with every use of every site: as :func:`explain`, with the plan's sites and ranks.

    Sites that the plan leaves alone are refused with its reason. Hidden units that leave and tables under one code are
    as they are in the graph that the plan is applied to.

    Raises:
        PassError: the plan belongs to another program.
    """
    require_program(program, "afm_fx.explain_plan")
    module = _planned_graph(program, plan)
    uncentred = {name for name, factor in plan.factors.items() if factor.offset is None}
    ranks = {name: factor.rank for name, factor in plan.factors.items()}
    analysis = analyze(module, uncentred=uncentred, ranks=ranks)
    alone = {name: site.reason for site in plan.sites if site.rank is None for name in (site.tables or (site.name,))}
    sites = tuple(replace(site, refusal=site.refusal or alone.get(site.name)) for site in analysis.sites)
    return _explanation(program, module, replace(analysis, sites=sites))


def _planned_graph(program: Program, plan: Plan) -> GraphModule:
    """The graph whose sites a plan names, joint tables without data."""
    module = clone_graph_module(program.graph_module)
    DropUnits(plan.units)(module)
    joint = [table.name for table in joinable_tables(module) if table.name in plan.factors]
    JoinTables(joint, blank=True)(module)
    return module


def _explanation(program: Program, module: GraphModule, analysis: Analysis) -> Explanation:
    return Explanation(
        parameters=program.parameter_count(),
        operators=sum(node.op == "call_function" for node in module.graph.nodes),
        front_door=program.front_door,
        warnings=program.warnings,
        sites=analysis.sites,
        chains=tuple(chains_of(module, analysis)),
        flow=flow_of(module, analysis),
    )
