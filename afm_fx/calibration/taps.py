"""Where the features of every site can be read in the captured graph, joint tables included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.graph import clone_graph_module
from passes.sites import JoinTables, JointTable, Site, find_sites, joinable_tables


@dataclass(frozen=True)
class Tap:
    """The nodes that hold a site's features.

    Attributes:
        site: the site; a joint table is the site that it is once it is joined.
        places: for each use of the site, the nodes whose features, side by side, are the site's. A plain site has one
            node a use, a joint table one for every table.
        joint: the tables that the site joins, None for a plain site.
    """

    site: Site
    places: tuple[tuple[str, ...], ...]
    joint: JointTable | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all nodes."""
        return tuple(name for place in self.places for name in place)

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of features of the nodes of a place."""
        return (self.site.width,) if self.joint is None else self.joint.widths

    def read(self, values: Sequence[Tensor]) -> Iterator[Tensor]:
        """The features ``[..., n]`` of each use, from the values of :attr:`nodes`."""
        step = len(self.widths)
        for start in range(0, len(values), step):
            yield values[start] if step == 1 else torch.cat(list(values[start : start + step]), dim=-1)


def plain_taps(module: GraphModule) -> tuple[Tap, ...]:
    """The taps of the sites that may be factored, in graph order."""
    sites = find_sites(module)
    return tuple(Tap(site, tuple((name,) for name in site.nodes)) for site in sites if site.refusal is None)


def joint_taps(module: GraphModule) -> tuple[Tap, ...]:
    """The taps of the joint tables that may be factored, in graph order."""
    joints = {joint.name: joint for joint in joinable_tables(module)}
    if not joints:
        return ()
    sites = find_sites(joined(module, list(joints)))
    return tuple(
        Tap(site, joints[site.name].lookups, joints[site.name])
        for site in sites
        if site.refusal is None and site.name in joints
    )


def joined(module: GraphModule, names: Sequence[str]) -> GraphModule:
    """A copy of a graph in which the named joint tables are made, without data."""
    clone = clone_graph_module(module)
    JoinTables(names, blank=True)(clone)
    return clone


def parts_of(tap: Tap) -> Iterator[tuple[str, Tensor]]:
    """The tables of a joint tap, with their positions among its features."""
    start = 0
    for name, width in zip(tap.joint.tables if tap.joint is not None else (), tap.widths, strict=False):
        yield name, torch.arange(start, start + width)
        start += width
