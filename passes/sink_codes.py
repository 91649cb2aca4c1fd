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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.canonical import CHANNELS, makes_channels
from passes.codes import Block, CodeBuilder, Factor, LowRankValue, NewParameter, Product, blank_factor, restore
from passes.graph import (
    FACTORED_SITE,
    GraphInvariantError,
    GraphPass,
    GraphPicture,
    PassError,
    RewriteError,
    TableIndexError,
    aten,
    clone_graph_module,
    replaced_operands,
    same_sizes,
    same_value,
    value_of,
)
from passes.laws import (
    ABSORBED,
    MULTIPLIES,
    ON_CODES,
    PER_FIELD,
    Absorbed,
    Carried,
    Entry,
    Fate,
    Law,
    Outcome,
    Restored,
    Summed,
    Verdict,
    affine_of_linear,
    decoder_of,
    dense_source,
    law_of,
    linear_site,
    operator_name,
    source_line,
)
from passes.sites import Lookup, Site, SiteKind, bag_arguments, find_sites, join_tables, lookup_of

LOOKUP = "look up"


class SinkCodes(GraphPass):
    """Replaces each factored site with its codes and absorbs or decodes them at their uses.

    A factor named like a joint table (:mod:`passes.sites.join_tables`) encodes the tables that this one would be made
    of, side by side; the joint table itself is never made.

    A site that the graph already has in codes of the same width is left as it is, so that a second run changes nothing.

    A law that fails restores the features, and the verdict says so.

    Args:
        factors: factor per site name.
        dry: make parameters without data.
        strict: raise where a law fails.
    """

    def __init__(self, factors: Mapping[str, Factor], *, dry: bool = False, strict: bool = False) -> None:
        super().__init__()
        self.factors = dict(factors)
        self.dry, self.strict = dry, strict
        self.verdicts: tuple[Verdict, ...] = ()
        self.made: tuple[NewParameter, ...] = ()
        self.spared: dict[str, frozenset[str]] = {}
        self.carried: dict[str, tuple[str, ...]] = {}
        self._features: frozenset[str] = frozenset()
        self._replaced: tuple[str, ...] = ()

    def rewrite(self, graph_module: GraphModule) -> None:
        joint = join_tables(graph_module, self.factors.keys(), blank=True)
        walk = _Walk(graph_module, self.factors, CodeBuilder(graph_module, dry=self.dry), joint, strict=self.strict)
        walk.run()
        self.verdicts = tuple(walk.verdicts)
        self.made, self.spared = tuple(walk.builder.made), walk.builder.spared
        self.carried = {
            node.name: _sites_of(value)
            for node, value in walk.values.items()
            if not walk.steps[node].is_computed_from_features
        }
        self._features = frozenset(node.name for node in walk.features)
        self._replaced = tuple(walk.sites)

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


@dataclass
class _Step:
    """What the walk knows about one node beside its value.

    Attributes:
        sources: for each site inside, the operand that it came from.
        is_replaced: whether the node is done on codes, so that it goes where nothing reads it.
        restored: the node's features, decoded; None until something needs them.
    """

    sources: dict[str, Node] = field(default_factory=dict)
    is_replaced: bool = False
    is_computed_from_features: bool = False
    restored: Node | None = None


class _Walk:
    """One walk over one graph."""

    def __init__(
        self,
        module: GraphModule,
        factors: Mapping[str, Factor],
        builder: CodeBuilder,
        joint: Mapping[str, tuple[Tensor, ...]],
        *,
        strict: bool,
    ) -> None:
        self.module = module
        self.factors = factors
        self.joint = joint
        self.builder, self.strict = builder, strict
        builder.features = self._features_of
        self.sites = _sites_to_replace(module, factors)
        self.values: dict[Node, Any] = {}
        self.steps: dict[Node, _Step] = {}
        self.verdicts: list[Verdict] = []
        self.features: set[Node] = set()

    def run(self) -> None:
        originals = list(self.module.graph.nodes)
        with torch.no_grad():
            for node in originals:
                with self.module.graph.inserting_before(node), _at(node):
                    self._visit(node)
        for node in reversed(originals):  # dead code elimination keeps operators that may be random (attention)
            if node in self.steps and self.steps[node].is_replaced and not node.users:
                self.module.graph.erase_node(node)
        order = {node.name: place for place, node in enumerate(originals)}
        self.verdicts.sort(key=lambda verdict: order[verdict.node])

    def _visit(self, node: Node) -> None:
        if node.name in self.sites:
            self._replace_site(node, self.sites[node.name])
            return
        if not any(operand in self.values for operand in node.all_input_nodes):
            return
        entry = law_of(node, self.values)
        with self.builder.standing_for(node, entry.law):
            outcome = self._outcome(node, entry)
        if isinstance(outcome, Restored):
            reason = Restored(CHANNELS, Law.MOVE) if makes_channels(node) else outcome
            self._need_features(node, reason, reason.law or entry.law)
            return
        is_product = isinstance(outcome, Summed) or (
            isinstance(outcome, Carried) and isinstance(outcome.value, Product)
        )
        step = self.steps[node] = _Step(is_replaced=not is_product)
        for operand in node.all_input_nodes:
            for site in _sites_of(self.values.get(operand)):
                step.sources.setdefault(site, operand)
        match outcome:
            case Carried():
                self.values[node] = outcome.value
                if entry.law is not Law.MOVE and not is_product:
                    self._judge(node, Fate.ON_CODES, entry.law, ON_CODES[entry.law])
            case Summed():
                for product in outcome.on_codes:
                    self._judge(product, Fate.ON_CODES, Law.QUADRATIC, ON_CODES[Law.QUADRATIC])
                self._replace_with_features(node, outcome.node)
            case Absorbed():
                self._judge(node, Fate.ABSORBED, entry.law, outcome.reason)
                self._replace_with_features(node, outcome.node)

    def _outcome(self, node: Node, entry: Entry) -> Outcome:
        """What a node's law says; features are restored where it fails, and nothing of its work is left."""
        if entry.rule is None:
            return Restored(entry.reason)
        before, state = node.prev, self.builder.state()
        try:
            outcome = entry.rule(self.builder, node, self.values)
            _check_form(node, outcome)
        except Exception as error:
            if self.strict:
                raise
            self.builder.reset(state)
            self._erase_unused(before, node)
            return Restored(f"its law '{entry.law}' failed, please report it: {type(error).__name__}: {error}")
        return outcome

    def _erase_unused(self, before: Node, node: Node) -> None:
        """Erases what was made between two nodes and nothing reads, but for restored features."""
        while (made := node.prev) is not before:
            node = made
            if not made.users and made not in self.features:
                node = made.next
                self.module.graph.erase_node(made)

    def _replace_with_features(self, node: Node, features: Node) -> None:
        node.replace_all_uses_with(features)
        self.features.add(features)

    def _replace_site(self, node: Node, site: Site) -> None:
        factor = self.factors[site.name]
        is_table = site.kind is SiteKind.EMBEDDING
        with self.builder.standing_for(node, LOOKUP if is_table else Law.LINEAR):
            value = self._look_up(node, site, factor) if is_table else self._factor_linear(node, site, factor)
        value.code.meta[FACTORED_SITE] = (site.name, factor.rank)
        self.values[node], self.steps[node] = value, _Step(is_replaced=True)

    def _look_up(self, node: Node, site: Site, factor: Factor) -> LowRankValue:
        lookup = _lookup_of(node)
        lead = tuple(value_of(node).shape)[:-1]
        block = Block(tuple(range(factor.rank)), decoder_of(factor, site.name))
        if factor.rank == 0:
            return LowRankValue(self._no_code(node, lookup), lead, (site.width,), (block,))
        name = f"{site.name}.codes.weight"
        if name not in self.builder.shared:
            table = self.builder.constant(lookup.node.args[0])
            if table is None:
                raise TableIndexError(f"the table of '{node.name}' is not a parameter")
            self.builder.shared[name] = self.builder.new_parameter(
                name,
                factor.encode_table(*self.joint.get(site.name, (table,))),
                table,
                columns=[(site.name, site.width)],
            )
        code = _looked_up(self.builder, lookup, self.builder.shared[name])
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
        affine = affine_of_linear(self.builder, node)
        if affine is None:
            raise TableIndexError(f"the weight or bias of '{node.name}' is not a constant")
        factored, value = (factor, site.name), self.values.get(source)
        if isinstance(value, LowRankValue):
            ready = self.builder.push(value)
            if ready is not None:
                self._judge(node, Fate.ABSORBED, Law.LINEAR, ABSORBED)
                return linear_site(self.builder, ready, affine, factored)
            self._judge(node, Fate.RESTORED, Law.LINEAR, PER_FIELD)
        if value is not None:
            source = self._features_of(source)
        return linear_site(self.builder, dense_source(source), affine, factored)

    def _need_features(self, node: Node, outcome: Restored, law: Law) -> None:
        """Restores what a node takes. Products that it takes are computed first, and are dense from then on."""
        products = [operand for operand in node.all_input_nodes if isinstance(self.values.get(operand), Product)]
        for operand in products:
            self._compute_from_features(operand)
            del self.values[operand]
        if products:
            self._visit(node)
            return
        self._judge(node, Fate.RESTORED, law, outcome.reason)
        self._read_features(node)

    def _compute_from_features(self, product: Node) -> None:
        """Lets a node of products of features do what it did in the original."""
        step = self.steps[product]
        if not step.is_computed_from_features:
            step.is_computed_from_features = True
            if any(term.node is product for term in self.values[product].terms):
                self._judge(product, Fate.RESTORED, Law.INTERACTION, MULTIPLIES)
            self._read_features(product)

    def _read_features(self, node: Node) -> None:
        """Makes a node read the features of its operands."""
        for operand in node.all_input_nodes:
            if operand in self.values:
                node.replace_input_with(operand, self._features_of(operand))

    def _features_of(self, node: Node) -> Node:
        """A node's features: decoded once for all that read them, right after the node's place."""
        value, step = self.values[node], self.steps[node]
        if isinstance(value, Product):
            self._compute_from_features(node)
            return node
        if isinstance(value, tuple):
            return node  # a whole tuple is needed: its producer stays, decoded from its own operand
        if step.restored is None:
            with self.module.graph.inserting_before(node.next):
                step.restored = restore(self.builder, value, node)
            self.features.add(step.restored)
        return step.restored

    def _judge(self, node: Node, fate: Fate, law: Law, reason: str) -> None:
        """One verdict for each site in each of a node's operands."""
        for operand in node.all_input_nodes:
            for site in _sites_of(self.values.get(operand)):
                path = (*self._path(operand, site), node.name)
                self.verdicts.append(
                    Verdict(site, fate, operator_name(node), node.name, law, reason, source_line(node), path)
                )

    def _path(self, node: Node, site: str) -> tuple[str, ...]:
        """Names of the nodes from the site's own node to this one."""
        path = [node]
        while path[-1] in self.steps and (source := self.steps[path[-1]].sources.get(site)) is not None:
            path.append(source)
        return tuple(each.name for each in reversed(path))


def _sites_to_replace(module: GraphModule, factors: Mapping[str, Factor]) -> dict[str, Site]:
    """The sites that have a factor, by each of their nodes' names."""
    sites = {site.name: site for site in find_sites(module)}
    done = dict(node.meta[FACTORED_SITE] for node in module.graph.nodes if FACTORED_SITE in node.meta)
    by_node: dict[str, Site] = {}
    for name, factor in factors.items():
        site = sites.get(name)
        if site is not None:
            _check_fit(site, factor)
            by_node.update(dict.fromkeys(site.nodes, site))
        elif name in done and done[name] != factor.rank:
            raise TableIndexError(f"site '{name}' is in codes {done[name]} wide, its factor is {factor.rank}")
        elif name not in done and factor.rank != 0:  # a constant row leaves no trace of its table
            raise TableIndexError(f"the graph has no site '{name}'")
    return by_node


def _check_fit(site: Site, factor: Factor) -> None:
    """Refuses a factor that does not fit its site."""
    name = site.name
    if site.refusal is not None:
        raise TableIndexError(f"site '{name}' may not be factored: {site.refusal}")
    if site.width != factor.width:
        raise TableIndexError(f"site '{name}' is {site.width} wide, its factor {factor.width}")
    if factor.rank < site.lowest_rank:
        raise TableIndexError(f"site '{name}' needs a code: no constant row can stand for its features")
    if factor.offset is not None and not site.centred:
        raise TableIndexError(f"site '{name}' has features that must stay zero or are summed, its factor has an offset")


def _check_form(node: Node, outcome: Outcome) -> None:
    """Refuses a result of another shape or number format than the node's.

    Raises:
        RewriteError: saying both.
    """
    found: Any = None
    if isinstance(outcome, (Absorbed, Summed)) and not same_value(value_of(outcome.node), value_of(node)):
        found = tuple(value_of(outcome.node).shape)
    if isinstance(outcome, Carried) and isinstance(outcome.value, LowRankValue):
        shape = tuple(outcome.value.shape)
        found = None if same_sizes(shape, value_of(node).shape) else shape
    if found is not None:
        raise RewriteError(f"'{node.name}' is {list(value_of(node).shape)}, on codes it would be {list(found)}")


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


def _looked_up(builder: CodeBuilder, lookup: Lookup, codes: Node) -> Node:
    """The same lookup in another table of as many rows."""
    node = lookup.node
    if lookup.pooling is None:
        return builder.emit(node.target, codes, *node.args[1:], **node.kwargs)
    arguments = {**bag_arguments(node), "weight": codes}
    bag = builder.emit(node.target, *arguments.values())
    return builder.emit(operator.getitem, bag, 0)
