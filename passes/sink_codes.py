"""Sinks codes: walks the graph once and carries every factored site's code as far towards the consumers as it goes.

Replaces ``Embedding -> (concat) -> Linear``               with ``Embedding of codes -> (concat) -> Linear on codes``,
         ``Linear -> activation``                          with ``Linear(r) -> Linear -> activation``,
         ``Embedding -> interaction``                      with ``Embedding of codes -> decoder -> interaction``.

Every node that takes a low-rank value asks the table of laws (:mod:`passes.laws`) what becomes of it. A value that an
operator needs as it is gets decoded once, for all such operators. Each end of a code's way is a :class:`Verdict`.
"""

from __future__ import annotations

import contextlib
import operator
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from passes import absorb
from passes.code_builder import CodeBuilder, NewParameter
from passes.errors import GraphInvariantError, PassError, RewriteError, TableIndexError
from passes.factor import Factor, blank_factor
from passes.graph_change import GraphPicture, replaced_operands
from passes.graph_pass import GraphPass
from passes.graph_tools import FACTORED_SITE, aten, clone_graph_module, finish, value_of
from passes.laws import law_of
from passes.lookups import Lookup, looked_up, lookup_of
from passes.low_rank_value import Block, LowRankValue
from passes.outcomes import Absorbed, Carried, Deferred, Law, Outcome, Restored, Summed
from passes.products import Product
from passes.restore import restore
from passes.sites import Site, SiteKind, find_sites
from passes.unify_linears import CHANNELS, makes_channels

LOOKUP = "look up"
_GENERATED = "<eval_with_key>"
"""File name in stack traces of code that torch.fx wrote."""
_TORCH = torch.__file__.removesuffix("__init__.py")

ON_CODES = {
    Law.GATE: "all features of a code are scaled by one number, so the code is scaled instead",
    Law.LINEAR: "sums and constant maps of features are done on the codes and the decoders' constants",
    Law.QUADRATIC: "features of one orthonormal decoder have the inner products of their codes, which are shorter",
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


@dataclass(frozen=True)
class _Finding:
    """What a verdict says beyond the place."""

    fate: Fate
    law: Law
    reason: str


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
        self.made: tuple[NewParameter, ...] = ()
        self.spared: dict[str, frozenset[str]] = {}
        self.carried: dict[str, tuple[str, ...]] = {}
        self._features: frozenset[str] = frozenset()
        self._replaced: tuple[str, ...] = ()

    def call(self, graph_module: GraphModule) -> PassResult:
        walk = _Walk(graph_module, self.factors, CodeBuilder(graph_module, dry=self.dry))
        walk.run()
        self.verdicts = tuple(walk.verdicts)
        self.made, self.spared = tuple(walk.builder.made), walk.builder.spared
        self.carried = {
            node.name: _sites_of(value) for node, value in walk.values.items() if node not in walk.on_features
        }
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
    """What a rewrite would do.

    Attributes:
        sites: all sites, refused ones included.
        verdicts: one per use of each site that is factored.
        carried: for every node whose result stays in codes, the sites in it.
        rewritten: the rewritten graph; its new parameters have no data.
        made: those parameters.
        spared: sites by name of a weight that decoders took in; where one of them is left alone it is needed after all.
    """

    sites: tuple[Site, ...]
    verdicts: tuple[Verdict, ...]
    carried: Mapping[str, tuple[str, ...]]
    rewritten: GraphModule
    made: tuple[NewParameter, ...]
    spared: Mapping[str, frozenset[str]]


def analyze(
    module: GraphModule, *, uncentred: Collection[str] = (), ranks: Mapping[str, int | None] | None = None
) -> Analysis:
    """Runs the rewrite on a copy whose new parameters have no data; the module is left as it is.

    Args:
        uncentred: names of sites that carry no offset although they may.
        ranks: ranks of the sites to rewrite; a site without one, or with None, is left alone. None: every site that is
            not refused at rank 1. A sum of codes and dense features is dense, so what is left alone may change what
            becomes of the rest.
    """
    sites = find_sites(module)
    if ranks is None:
        ranks = {site.name: 1 for site in sites}
    blanks = {
        site.name: blank_factor(site.width, rank, centred=site.centred and site.name not in uncentred)
        for site in sites
        if site.refusal is None and (rank := ranks.get(site.name)) is not None
    }
    clone = clone_graph_module(module)
    sink = SinkCodes(blanks, dry=True)
    sink(clone)
    return Analysis(sites, sink.verdicts, sink.carried, clone, sink.made, sink.spared)


def _of_channels(outcome: Outcome) -> Outcome:
    """The outcome of putting features in front of positions, with a reason in terms of the convolution that it was."""
    reason = Restored(CHANNELS, Law.MOVE)
    return reason if isinstance(outcome, Restored) else outcome


class _Walk:
    """One walk over one graph."""

    def __init__(self, module: GraphModule, factors: Mapping[str, Factor], builder: CodeBuilder) -> None:
        self.module = module
        self.factors = factors
        self.builder = builder
        builder.features = self._restore
        self.values: dict[Node, Any] = {}
        self.verdicts: list[Verdict] = []
        self.on_features: set[Node] = set()
        self._sources: dict[Node, dict[str, Node]] = {}
        self.features: set[Node] = set()
        self._restored: dict[Node, Node] = {}
        self._deferred: dict[Node, Restored | None] = {}
        self._tables: dict[str, Node] = {}
        self._superseded: set[Node] = set()
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
            if site is None and factor.rank == 0:
                continue  # a constant row leaves no trace of its table
            if site is None:
                raise TableIndexError(f"the graph has no site '{name}'")
            if site.refusal is not None:
                raise TableIndexError(f"site '{name}' may not be factored: {site.refusal}")
            if site.width != factor.width:
                raise TableIndexError(f"site '{name}' is {site.width} wide, its factor {factor.width}")
            if factor.rank < site.lowest_rank:
                raise TableIndexError(f"site '{name}' needs a code: no constant row can stand for its features")
            if factor.offset is not None and not site.centred:
                raise TableIndexError(
                    f"site '{name}' has features that must stay zero or are summed, its factor has an offset"
                )
            by_node.update(dict.fromkeys(site.nodes, site))
        return by_node

    def run(self) -> None:
        originals = list(self.module.graph.nodes)
        with self.builder.session():
            for node in originals:
                with self.module.graph.inserting_before(node), _at(node):
                    self._visit(node)
        self._erase_superseded(originals)
        order = {node.name: place for place, node in enumerate(originals)}
        self.verdicts.sort(key=lambda verdict: order[verdict.node])

    def _erase_superseded(self, originals: list[Node]) -> None:
        """Erases what is done on codes now; dead code elimination keeps operators that may be random (attention)."""
        for node in reversed(originals):
            if node in self._superseded and not node.users:
                self.module.graph.erase_node(node)

    def _visit(self, node: Node) -> None:
        if node.name in self.sites:
            self._replace_site(node, self.sites[node.name])
            return
        if not any(operand in self.values for operand in node.all_input_nodes):
            return
        entry = law_of(node, self.values)
        with self.builder.standing_for(node, entry.law):
            outcome = entry.rule(self.builder, node, self.values) if entry.rule is not None else Restored(entry.reason)
        if makes_channels(node):
            outcome = _of_channels(outcome)
        if isinstance(outcome, (Carried, Absorbed)):
            self._superseded.add(node)
        if isinstance(outcome, (Carried, Deferred)):
            self._sources[node] = {
                site: operand
                for operand in reversed(node.all_input_nodes)
                for site in _sites_of(self.values.get(operand))
            }
        match outcome:
            case Carried():
                self.values[node] = outcome.value
                if entry.law is not Law.MOVE:
                    self._judge(node, outcome)
            case Deferred():
                self.values[node], self._deferred[node] = outcome.product, outcome.otherwise
            case Summed():
                self._judge_products(outcome.on_codes)
                node.replace_all_uses_with(outcome.node)
                self.features.add(outcome.node)
            case Absorbed():
                self._judge(node, outcome)
                node.replace_all_uses_with(outcome.node)
                self.features.add(outcome.node)
            case Restored():
                self._need_features(node, outcome)

    def _replace_site(self, node: Node, site: Site) -> None:
        factor = self.factors[site.name]
        produce = self._look_up if site.kind is SiteKind.EMBEDDING else self._factor_linear
        with self.builder.standing_for(node, LOOKUP if site.kind is SiteKind.EMBEDDING else Law.LINEAR):
            value = self.values[node] = produce(node, site, factor)
        value.code.meta[FACTORED_SITE] = (site.name, factor.rank)
        self._superseded.add(node)

    def _need_features(self, node: Node, outcome: Restored) -> None:
        """Restores what a node takes. What it takes of deferred values is computed first, and is dense from then on."""
        deferred = [each for each in node.all_input_nodes if isinstance(self.values.get(each), Product)]
        if not deferred:
            self._judge(node, outcome)
            self._restore_operands(node)
            return
        for operand in deferred:
            self._compute_from_features(operand)
            del self.values[operand]
        self._visit(node)

    def _compute_from_features(self, node: Node) -> None:
        """Lets a node of a deferred value do what it did in the original."""
        self.on_features.add(node)
        otherwise = self._deferred.pop(node, None)
        if otherwise is not None:
            self._judge(node, otherwise)
        self._restore_operands(node)

    def _look_up(self, node: Node, site: Site, factor: Factor) -> LowRankValue:
        lookup = _lookup_of(node)
        lead = tuple(value_of(node).shape)[:-1]
        block = Block(tuple(range(factor.rank)), absorb.decoder_of(factor, site.name))
        if factor.rank == 0:
            return LowRankValue(self._no_code(node, lookup), lead, (site.width,), (block,))
        if site.name not in self._tables:
            table = self.builder.constant(lookup.node.args[0])
            if table is None:
                raise TableIndexError(f"the table of '{node.name}' is not a parameter")
            self._tables[site.name] = self.builder.new_parameter(
                f"{site.name}.codes.weight", factor.encode_table(table), table, columns=[(site.name, site.width)]
            )
        code = looked_up(self.builder, lookup, self._tables[site.name])
        return LowRankValue(code, lead, (site.width,), (block,))

    def _no_code(self, node: Node, lookup: Lookup) -> Node:
        """Stands for the code of a table of rank 0: a column of zeros, for its leading axes."""
        column = self.builder.emit(aten.unsqueeze.default, lookup.ids, -1)
        form = {"dtype": value_of(node).dtype, "device": value_of(node).device}
        return self.builder.emit(aten.zeros_like.default, column, **form)

    def _factor_linear(self, node: Node, site: Site, factor: Factor) -> LowRankValue:
        source = node.args[0]
        if not isinstance(source, Node):
            raise TableIndexError(f"the input of '{node.name}' is not a tensor of the graph")
        affine = absorb.affine_of_linear(self.builder, node)
        if affine is None:
            raise TableIndexError(f"the weight or bias of '{node.name}' is not a constant")
        factored, value = (factor, site.name), self.values.get(source)
        if isinstance(value, LowRankValue):
            ready = self.builder.push(value)
            outcome = Restored(absorb.PER_FIELD) if ready is None else Absorbed(node, absorb.ABSORBED)
            self._judge(node, outcome, [source])
            if ready is not None:
                return absorb.linear_site(self.builder, node, ready, affine, factored)
        if value is not None:
            source = self._restore(source)
        return absorb.linear_site(self.builder, node, absorb.dense_source(source), affine, factored)

    def _restore_operands(self, node: Node) -> None:
        for operand in node.all_input_nodes:
            if operand in self.values:
                node.replace_input_with(operand, self._restore(operand))

    def _restore(self, operand: Node) -> Node:
        """The operand's features: decoded once for all consumers, right after the operand's place."""
        value = self.values[operand]
        if isinstance(value, Product):
            if operand in self._deferred:
                self._compute_from_features(operand)
            return operand
        if isinstance(value, tuple):
            return operand  # a whole tuple is needed: its producer stays, decoded from its own operand
        if operand not in self._restored:
            with self.module.graph.inserting_before(operand.next):
                self._restored[operand] = restore(self.builder, value, operand)
            self.features.add(self._restored[operand])
        return self._restored[operand]

    def _judge(
        self, node: Node, outcome: Carried | Absorbed | Restored, operands: Sequence[Node] | None = None
    ) -> None:
        entry = law_of(node, self.values)
        law = (outcome.law if isinstance(outcome, Restored) else None) or entry.law
        reason = ON_CODES[entry.law] if isinstance(outcome, Carried) else outcome.reason
        self._note(
            node, node.all_input_nodes if operands is None else operands, _Finding(_FATES[type(outcome)], law, reason)
        )

    def _judge_products(self, products: Sequence[Node]) -> None:
        finding = _Finding(Fate.ON_CODES, Law.QUADRATIC, ON_CODES[Law.QUADRATIC])
        for product in products:
            self._note(product, product.all_input_nodes, finding)

    def _note(self, node: Node, operands: Sequence[Node], finding: _Finding) -> None:
        for operand in operands:
            for site in _sites_of(self.values.get(operand)):
                path = (*self._path(operand, site), node.name)
                self.verdicts.append(
                    Verdict(
                        site=site, fate=finding.fate, operator=operator_name(node), node=node.name, law=finding.law,
                        reason=finding.reason, source=source_line(node), path=path,
                    )
                )  # fmt: skip

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


def _lookup_of(features: Node) -> Lookup:
    """The lookup whose features a node holds."""
    reader = features.args[0] if features.target is operator.getitem else features
    table = reader.args[0] if isinstance(reader, Node) else None
    lookup = lookup_of(reader, table) if isinstance(reader, Node) and isinstance(table, Node) else None
    if lookup is None:
        raise TableIndexError(f"'{features.name}' looks no rows of a table up")
    return lookup


def _sites_of(value: Any) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(site for part in value for site in part.sites))
    return value.sites if isinstance(value, (LowRankValue, Product)) else ()


def operator_name(node: Node) -> str:
    """The operator of a node as reasons and pictures name it: ``aten.relu``, ``getitem``, ``output``."""
    if node.op == "output":
        return "output"
    builtin = isinstance(node.target, types.BuiltinFunctionType)
    return str(getattr(node.target, "__name__", node.target) if builtin else node.target).removesuffix(".default")


def source_line(node: Node) -> str:
    """The innermost line of the user's own code in the node's stack trace: ``file:line: code``.

    Lines of torch itself stand in only where the trace holds no other.
    """
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    places = [at for at, line in enumerate(lines) if line.startswith("File ") and _GENERATED not in line]
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
