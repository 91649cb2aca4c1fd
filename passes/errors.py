"""Errors of the graph passes."""

from __future__ import annotations


class PassError(Exception):
    """A graph pass could not do its work; the message names the pass, the node and the reason."""


class GraphInvariantError(PassError):
    """A graph broke an invariant that a pass requires or ensures."""


class TableIndexError(PassError):
    """A factorization names a table or weight that the graph does not hold, or holds in another shape."""
