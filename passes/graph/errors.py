"""Errors of the graph passes, and the base of all errors."""

from __future__ import annotations


class AfmFxError(Exception):
    """Base of every error raised by ``afm_fx`` and ``passes``."""


class PassError(AfmFxError):
    """A graph pass could not do its work; the message names the pass, the node and the reason."""


class PassArgumentError(PassError):
    """A pass or a law was asked for with something that it does not take."""


class GraphInvariantError(PassError):
    """A graph broke an invariant that a pass requires or ensures."""


class PassPreconditionError(GraphInvariantError):
    """What a pass was given is not what it takes; the graph is as it was."""


class PassPostconditionError(GraphInvariantError):
    """What a pass made is not what it promises: a defect of the pass, or of a rule that a user registered."""


class RewriteError(PassError):
    """A pass failed in the middle of its work; the graph is unfinished and of no use."""


class TableIndexError(PassError):
    """A factorization names a table or weight that the graph does not hold, or holds in another shape."""
