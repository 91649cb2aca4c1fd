"""What must hold for the rewrite of any program, checked on one program at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

import afm_fx
from afm_fx.program.watched_run import WatchedRun
from passes.canonical.canonicalize import Canonicalize
from passes.codes.factor import Factor, factor_of
from passes.graph import PROVENANCE, clone_graph_module
from passes.sink_codes import Analysis, SinkCodes, analyze
from passes.sites.sites import Site, find_sites

TOLERANCE = 1e-10
SHARE_OF_ALL_SITES, SHARE_OF_SITES, SHARE_UNCENTRED = 0.4, 0.6, 0.3
Batches = Callable[[int], Any]


def random_factors(
    sites: Collection[Site], generator: torch.Generator, *, full: bool, uncentred: Collection[str] = ()
) -> dict[str, Factor]:
    """Factors with random bases and centres, of full or of random rank."""
    factors = {}
    for site in sites:
        rank = site.width if full else int(torch.randint(site.lowest_rank, site.width + 1, (), generator=generator))
        square = torch.randn(site.width, site.width, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(square)[0][:, :rank].contiguous()
        centred = site.centred and site.name not in uncentred
        centre = torch.randn(site.width, generator=generator, dtype=torch.float64) if centred else None
        factors[site.name] = factor_of(basis.mT.contiguous(), basis, centre)
    return factors


class Projected(WatchedRun):
    """Runs a program whose sites' features are what their codes can tell: ``y`` becomes ``decode(encode(y))``.

    At any rank, this is what the rewritten program must compute.
    """

    def __init__(self, module: GraphModule, factors: Mapping[str, Factor]) -> None:
        super().__init__(module, self.project)
        self.factor_at = {
            name: factors[site.name] for site in find_sites(module) if site.name in factors for name in site.nodes
        }
        self.largest = 1.0

    def project(self, node: Node, result: Any) -> Any:
        factor = self.factor_at.get(node.name)
        if factor is not None:
            codes = result @ factor.encoder.mT
            result = factor.decode(codes if factor.shift is None else codes + factor.shift)
        if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            self.largest = max(self.largest, float(result.abs().max()))
        return result


def check_metadata(node: Node, result: Any) -> None:
    """Holds a node's metadata against the value that the node has."""
    if isinstance(result, Tensor):
        value = node.meta["val"]
        assert value.dtype == result.dtype, f"{node.format_node()}: metadata {value.dtype}, value {result.dtype}"
        sizes = zip(value.shape, result.shape, strict=True)
        same = all(said == found for said, found in sizes if isinstance(said, int))
        assert same, f"{node.format_node()}: metadata {tuple(value.shape)}, value {tuple(result.shape)}"


def check_rewrite(program: afm_fx.Program, batches: Batches, *, seed: int = 0) -> Analysis:
    """Rewrites a float64 program at full rank, and at random ranks of some or all sites.

    Args:
        program: what to rewrite; it must be left as it is.
        batches: inputs of a number of rows.
        seed: for the factors and for the choice of sites.

    Returns:
        The analysis of all sites.
    """
    module = program.graph_module
    text = module.print_readable(print_output=False)
    sites = [site for site in find_sites(module) if site.refusal is None]
    generator, choice = torch.Generator().manual_seed(seed), random.Random(seed)  # noqa: S311 - no secret
    whole = analyze(module, ranks={site.name: site.width for site in sites})
    check_one(program, batches, random_factors(sites, generator, full=True), whole)
    if choice.random() < SHARE_OF_ALL_SITES:
        chosen = sites
    else:
        chosen = [site for site in sites if choice.random() < SHARE_OF_SITES]
    uncentred = [site.name for site in chosen if choice.random() < SHARE_UNCENTRED]
    factors = random_factors(chosen, generator, full=False, uncentred=uncentred)
    ranks = {name: factor.rank for name, factor in factors.items()}
    check_one(program, batches, factors, analyze(module, uncentred=uncentred, ranks=ranks))
    assert _rewritten(module, factors) == _rewritten(module, factors)
    assert module.print_readable(print_output=False) == text
    return whole


def check_one(program: afm_fx.Program, batches: Batches, factors: dict[str, Factor], analysis: Analysis) -> None:
    """One rewrite against its analysis and against the projected program."""
    module = program.graph_module
    clone = clone_graph_module(module)
    sink = SinkCodes(factors, strict=True)
    sink(clone)
    assert analysis.verdicts == sink.verdicts
    assert _count(analysis.rewritten) == _count(clone)
    _check_form(module, clone)
    _check_numbers(program, clone, batches, factors)
    Canonicalize()(clone)
    clone.graph.lint()
    _check_numbers(program, clone, batches, factors)


def _rewritten(module: GraphModule, factors: Mapping[str, Factor]) -> str:
    """The rewritten graph as text."""
    clone = clone_graph_module(module)
    SinkCodes(factors, strict=True)(clone)
    return str(clone.graph)


def _check_form(module: GraphModule, rewritten: GraphModule) -> None:
    """Inputs are kept, the graph is sound, and every new node says which rule made it and what it is."""
    rewritten.graph.lint()
    assert _inputs(rewritten) == _inputs(module)
    known = {node.name for node in module.graph.nodes}
    for node in rewritten.graph.nodes:
        if node.name not in known:
            assert node.meta.get(PROVENANCE), node.format_node()
            assert node.meta.get("val") is not None, node.format_node()
    read = {str(node.target) for node in rewritten.graph.nodes if node.op == "get_attr"}
    assert {name for name, _ in rewritten.named_parameters(remove_duplicate=False)} <= read


@torch.no_grad()
def _check_numbers(
    program: afm_fx.Program, rewritten: GraphModule, batches: Batches, factors: Mapping[str, Factor]
) -> None:
    for rows in (1, 5):
        args, kwargs = program.bind(batches(rows))
        leaves = pytree.tree_leaves((args, kwargs))
        reference = Projected(program.graph_module, factors)
        expected = pytree.tree_leaves(reference.run_flat(leaves))
        found = pytree.tree_leaves(WatchedRun(rewritten, check_metadata).run_flat(leaves))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            worst = float((one - other).abs().max())
            assert worst <= TOLERANCE * reference.largest, f"{rows} rows differ by {worst:.1e}"
    assert pytree.tree_structure(rewritten(*args, **kwargs)) == pytree.tree_structure(program.graph_module(*args))


def _inputs(module: GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes if node.op == "placeholder"]


def _count(module: GraphModule) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
