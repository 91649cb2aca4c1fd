"""Sinks codes: walks the graph once and carries every factored site's code as far towards the consumers as it goes.

Replaces ``Embedding -> (concat) -> Linear``               with ``Embedding of codes -> (concat) -> Linear on codes``,
         ``Linear -> activation``                          with ``Linear(r) -> Linear -> activation``,
         ``Embedding -> interaction``                      with ``Embedding of codes -> decoder -> interaction``.

Every node that takes a low-rank value asks the table of laws (:mod:`passes.laws`) what becomes of it. A value that an
operator needs as it is gets decoded once, for all such operators. Each end of a code's way is a :class:`Verdict`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from passes import absorb
from passes.code_builder import CodeBuilder
from passes.errors import GraphInvariantError, PassError, RewriteError, TableIndexError
from passes.factor import Factor, blank_factor
from passes.graph_change import GraphPicture, replaced_operands
from passes.graph_pass import GraphPass
from passes.graph_tools import FACTORED_SITE, aten, clone_graph_module, constant_of, finish, value_of
from passes.laws import law_of
from passes.low_rank_value import Block, LowRankValue
from passes.outcomes import Absorbed, Carried, Law, Outcome, Restored
from passes.parameter_ledger import Extent, ParameterLedger, Record, Term
from passes.restore import restore
from passes.sites import Site, SiteKind, find_sites

LOOKUP = "encode table"
_TORCH = torch.__file__.removesuffix("__init__.py")

ON_CODES = {
    Law.GATE: "all features of a code are scaled by one number, so the code is scaled instead",
    Law.LINEAR: "sums and constant maps of features are done on the codes and the decoders' constants",
}
"""Reason of a verdict whose features stay in a code."""


class Fate(StrEnum):
    """What becomes of a factored site's features at one use."""

    ABSORBED = "absorbed"
    ON_CODES = "on codes"
    RESTORED = "restored"
    REFUSED = "refused"


_FATES: dict[type, Fate] = {Absorbed: Fate.ABSORBED, Carried: Fate.ON_CODES, Restored: Fate.RESTORED}


@dataclass(frozen=True)
class Verdict:
    """The fate of one use of one site.

    Attributes:
        site: the site's name.
        fate: absorbed, on codes, restored or refused.
        operator: the consuming operator, for example ``aten.relu``.
        node: the consuming node's name in the captured graph.
        law: the law that decided.
        reason: one sentence.
        source: the user's source line, empty where the graph does not know it.
        path: node names from the site's own node to the consumer, both included.
    """

    site: str
    fate: Fate
    operator: str
    node: str
    law: Law
    reason: str
    source: str
    path: tuple[str, ...]


class SinkCodes(GraphPass):
    """Replaces each factored site with its codes and absorbs or decodes them at their uses.

    A site that the graph already has in codes of the same width is left as it is, so that a second run changes nothing.

    Args:
        factors: factor per site name.
        dry: make parameters without data.
    """

    def __init__(self, factors: Mapping[str, Factor], *, dry: bool = False) -> None:
        super().__init__()
        self.factors = dict(factors)
        self.dry = dry
        self.verdicts: tuple[Verdict, ...] = ()
        self.records: tuple[Record, ...] = ()
        self.consumed: dict[str, frozenset[str]] = {}
        self._features: frozenset[str] = frozenset()
        self._replaced: tuple[str, ...] = ()

    def call(self, graph_module: GraphModule) -> PassResult:
        walk = _Walk(graph_module, self.factors, dry=self.dry)
        walk.run()
        self.verdicts, self.records = tuple(walk.verdicts), tuple(walk.builder.records)
        self.consumed = walk.builder.consumed
        self._features = frozenset(node.name for node in walk.features)
        self._replaced = tuple(walk.sites)
        changed = finish(graph_module)
        return PassResult(graph_module, changed or bool(walk.sites))

    def ensures_change(self, before: GraphPicture, after: GraphPicture, graph_module: GraphModule) -> None:
        """No factored site is left, and a node that stays reads features where it read features, never a code.

        Raises:
            GraphInvariantError: naming the node.
        """
        super().ensures_change(before, after, graph_module)
        for name in self._replaced:
            if name in after.nodes:
                raise GraphInvariantError(f"node '{name}' of a factored site is still there")
        for name, old, new in replaced_operands(before, after):
            if new not in before.nodes and new not in self._features:
                raise GraphInvariantError(f"node '{name}' reads the code '{new}' in place of the features '{old}'")


@dataclass(frozen=True)
class Analysis:
    """What a rewrite of all sites would do.

    Attributes:
        sites: all sites, refused ones included.
        verdicts: one per use of each site that is not refused.
        ledger: the parameter count as a function of the ranks.
    """

    sites: tuple[Site, ...]
    verdicts: tuple[Verdict, ...]
    ledger: ParameterLedger


def analyze(module: GraphModule, *, uncentred: Collection[str] = (), only: Collection[str] | None = None) -> Analysis:
    """Runs the rewrite of every site on a throw-away copy with fake tensors; the module is left as it is.

    Args:
        uncentred: names of sites that carry no offset although they may.
        only: names of the sites to rewrite, None for all that are not refused. A sum of codes and dense features is
            dense, so what is left alone may change what becomes of the rest.
    """
    sites = find_sites(module)
    blanks = {
        site.name: blank_factor(site.width, 1, centred=site.centred and site.name not in uncentred)
        for site in sites
        if site.refusal is None and (only is None or site.name in only)
    }
    clone = clone_graph_module(module)
    sink = SinkCodes(blanks, dry=True)
    sink(clone)
    made = sum(record.count(_ones(blanks)) for record in sink.records)
    untouched = sum(parameter.numel() for parameter in clone.parameters()) - made
    kept = frozenset(node.name for node in clone.graph.nodes if node.op == "get_attr")
    records = (*sink.records, *_spared(module, sink.consumed, kept))
    return Analysis(sites, sink.verdicts, ParameterLedger(untouched, records, kept))


def _spared(module: GraphModule, consumed: Mapping[str, frozenset[str]], kept: frozenset[str]) -> Iterator[Record]:
    """Records of the parameters that decoders' constants take in: they are there only where nothing is factored."""
    for node in module.graph.nodes:
        tensor = constant_of(module, node)
        if node.name in consumed and node.name not in kept and isinstance(tensor, nn.Parameter):
            yield Record(Extent(tensor.numel()), Extent(1), spares=consumed[node.name])


def _ones(factors: Mapping[str, Factor]) -> dict[str, int]:
    return dict.fromkeys(factors, 1)


class _Walk:
    """One walk over one graph."""

    def __init__(self, module: GraphModule, factors: Mapping[str, Factor], *, dry: bool) -> None:
        self.module = module
        self.factors = factors
        self.builder = CodeBuilder(module, dry=dry)
        self.values: dict[Node, LowRankValue | tuple[LowRankValue, ...]] = {}
        self.verdicts: list[Verdict] = []
        self._sources: dict[Node, dict[str, Node]] = {}
        self.features: set[Node] = set()
        self._restored: dict[Node, Node] = {}
        self._tables: dict[str, Node] = {}
        self.sites = self._factored_sites()

    def _factored_sites(self) -> dict[str, Site]:
        sites = {site.name: site for site in find_sites(self.module)}
        by_node: dict[str, Site] = {}
        done = dict(node.meta[FACTORED_SITE] for node in self.module.graph.nodes if FACTORED_SITE in node.meta)
        for name, factor in self.factors.items():
            site = sites.get(name)
            if site is None and name in done:
                if done[name] != factor.rank:
                    raise TableIndexError(f"site '{name}' is in codes {done[name]} wide, its factor is {factor.rank}")
                continue
            if site is None:
                raise TableIndexError(f"the graph has no site '{name}'")
            if site.refusal is not None:
                raise TableIndexError(f"site '{name}' may not be factored: {site.refusal}")
            if site.width != factor.width:
                raise TableIndexError(f"site '{name}' is {site.width} wide, its factor {factor.width}")
            if factor.offset is not None and not site.centred:
                raise TableIndexError(f"site '{name}' has a padding row that must stay zero, its factor has an offset")
            by_node.update(dict.fromkeys(site.nodes, site))
        return by_node

    def run(self) -> None:
        originals = list(self.module.graph.nodes)
        with self.builder.session():
            for node in originals:
                with self.module.graph.inserting_before(node), _at(node):
                    self._visit(node)

    def _visit(self, node: Node) -> None:
        site = self.sites.get(node.name)
        if site is not None:
            factor = self.factors[site.name]
            produce = self._look_up if site.kind is SiteKind.EMBEDDING else self._factor_linear
            value = self.values[node] = produce(node, site, factor)
            value.code.meta[FACTORED_SITE] = (site.name, factor.rank)
            return
        if not any(operand in self.values for operand in node.all_input_nodes):
            return
        entry = law_of(node)
        outcome = entry.rule(self.builder, node, self.values) if entry.rule is not None else Restored(entry.reason)
        if isinstance(outcome, Carried):
            self.values[node] = outcome.value
            self._sources[node] = {
                site: operand
                for operand in reversed(node.all_input_nodes)
                for site in _sites_of(self.values.get(operand))
            }
            if entry.law is not Law.MOVE:
                self._judge(node, node.all_input_nodes, outcome)
            return
        self._judge(node, node.all_input_nodes, outcome)
        if isinstance(outcome, Absorbed):
            node.replace_all_uses_with(outcome.node)
            self.features.add(outcome.node)
        else:
            self._restore_operands(node)

    def _look_up(self, node: Node, site: Site, factor: Factor) -> LowRankValue:
        if site.name not in self._tables:
            table = self.builder.constant(node.args[0])
            if table is None:
                raise TableIndexError(f"the table of '{node.name}' is not a parameter")
            record = Record(Extent(site.rows), Extent(0, (Term(site.name, site.width),)))
            name = f"{site.name}.codes.weight"
            codes = factor.encode_table(table)
            self._tables[site.name] = self.builder.new_parameter(name, codes, table, record, rule=LOOKUP)
        arguments = node.args[1:]
        code = self.builder.emit(aten.embedding.default, self._tables[site.name], *arguments, rule=LOOKUP, like=node)
        block = Block(tuple(range(factor.rank)), absorb.decoder_of(factor, site.name))
        return LowRankValue(code, tuple(value_of(node).shape)[:-1], (site.width,), (block,))

    def _factor_linear(self, node: Node, site: Site, factor: Factor) -> LowRankValue:
        source = node.args[0]
        if not isinstance(source, Node):
            raise TableIndexError(f"the input of '{node.name}' is not a tensor of the graph")
        affine = absorb.affine_of_linear(self.builder, node)
        if affine is None:
            raise TableIndexError(f"the weight or bias of '{node.name}' is not a constant")
        factored, value = (factor, site.name), self.values.get(source)
        if isinstance(value, LowRankValue):
            ready = self.builder.push(value, rule=absorb.RULE, like=node)
            outcome = Restored(absorb.PER_FIELD) if ready is None else Absorbed(node, absorb.ABSORBED)
            self._judge(node, [source], outcome)
            if ready is not None:
                return absorb.linear_site(self.builder, node, ready, affine, factored)
            source = self._restore(source)
        return absorb.linear_site(self.builder, node, absorb.dense_source(source), affine, factored)

    def _restore_operands(self, node: Node) -> None:
        for operand in node.all_input_nodes:
            if operand in self.values:
                node.replace_input_with(operand, self._restore(operand))

    def _restore(self, operand: Node) -> Node:
        """The decoded operand, made once for all consumers."""
        if operand not in self._restored:
            value = self.values[operand]
            if isinstance(value, tuple):
                return operand  # a whole tuple is needed: its producer stays, decoded from its own operand
            self._restored[operand] = restore(self.builder, value, operand)
            self.features.add(self._restored[operand])
        return self._restored[operand]

    def _judge(self, node: Node, operands: list[Node], outcome: Outcome) -> None:
        entry = law_of(node)
        law = (outcome.law if isinstance(outcome, Restored) else None) or entry.law
        reason = ON_CODES[entry.law] if isinstance(outcome, Carried) else outcome.reason
        for operand in operands:
            for site in _sites_of(self.values.get(operand)):
                path = (*self._path(operand, site), node.name)
                self.verdicts.append(
                    Verdict(
                        site, _FATES[type(outcome)], _operator(node), node.name, law, reason, source_line(node), path
                    )
                )

    def _path(self, node: Node, site: str) -> tuple[str, ...]:
        """Names of the nodes from the site's own node to this one."""
        path = [node]
        while (source := self._sources.get(path[-1], {}).get(site)) is not None:
            path.append(source)
        return tuple(each.name for each in reversed(path))


@contextlib.contextmanager
def _at(node: Node) -> Iterator[None]:
    """Names the node at which something unforeseen went wrong."""
    try:
        yield
    except PassError:
        raise
    except Exception as error:
        raise RewriteError(f"SinkCodes failed at node '{node.name}' ({node.target}): {error}") from error


def _sites_of(value: Any) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(site for part in value for site in part.sites))
    return value.sites if isinstance(value, LowRankValue) else ()


def _operator(node: Node) -> str:
    return "output" if node.op == "output" else str(node.target).removesuffix(".default")


def source_line(node: Node) -> str:
    """The innermost line of the user's own code in the node's stack trace: ``file:line: code``.

    Lines of torch itself stand in only where the trace holds no other.
    """
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    places = [position for position, line in enumerate(lines) if line.startswith("File ")]
    if not places:
        return ""
    place = next((each for each in reversed(places) if not _in_torch(lines[each])), places[-1])
    code = lines[place + 1] if place + 1 < len(lines) and place + 1 not in places else ""
    file, _, rest = lines[place].removeprefix("File ").partition(",")
    number = rest.partition("line ")[2].partition(",")[0]
    return f"{file.strip(chr(34)).rsplit('/', 1)[-1]}:{number}: {code}"


def _in_torch(place: str) -> bool:
    """Whether a line ``File "...", line ...`` of a stack trace lies in the torch package."""
    return place.removeprefix('File "').startswith(_TORCH)
