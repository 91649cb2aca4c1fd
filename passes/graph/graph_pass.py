"""The frame of every pass: what it requires is checked on what it is given, what it ensures on what it returns.

``torch.fx``'s own ``PassBase`` checks ``ensures`` on the module that came in, which is the wrong one where a pass
returns another. Passes derive from :class:`GraphPass` instead; they are ``PassBase`` all the same and run in torch's
``PassManager`` beside other people's.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from passes.graph.edits import finish
from passes.graph.errors import (
    GraphInvariantError,
    PassError,
    PassPostconditionError,
    PassPreconditionError,
    RewriteError,
)
from passes.graph.graph_change import GraphPicture, check_change, picture_of
from passes.graph.graph_checks import check_values, check_well_formed


class GraphPass(PassBase):
    """A pass on functional ATen graphs with ``meta["val"]`` on every node.

    It changes the module in place, or makes another. A second run changes nothing; the same graph gives the same
    result, names included.
    """

    retargets: ClassVar[Mapping[Any, Any]] = {}
    """Operators that the pass replaces in place, and by what; all other nodes that stay keep operator and arguments."""

    after: ClassVar[tuple[str, ...]] = ()
    """Names of the passes that have to be done before, where they run together (:mod:`passes.graph.fixpoint`)."""

    keeps_inputs: ClassVar[bool] = True
    """Whether the graph takes the same inputs afterwards."""

    def __call__(self, graph_module: GraphModule) -> PassResult:
        """Runs the pass between its checks.

        Raises:
            PassPreconditionError: the graph is not what the pass takes.
            PassPostconditionError: the result is not what the pass promises.
            PassError: the pass could not do its work.
        """
        with self._blamed(PassPreconditionError, "cannot run on this graph"):
            self.requires(graph_module)
        before = picture_of(graph_module)
        try:
            made = self.rewrite(graph_module) or graph_module
        except PassError:
            raise
        except Exception as error:
            raise RewriteError(f"{self.name} failed: {type(error).__name__}: {error}") from error
        with self._blamed(PassPostconditionError, "made a graph that it must not make"):
            self.ensures(made)
            finish(made)
            after = picture_of(made)
            self.ensures_change(before, after, made)
        return PassResult(made, modified=not before.same(after))

    @property
    def name(self) -> str:
        """What messages call the pass."""
        return type(self).__name__

    def call(self, graph_module: GraphModule) -> PassResult:
        """The whole pass, by torch's name for it."""
        return self(graph_module)

    @abc.abstractmethod
    def rewrite(self, graph_module: GraphModule) -> GraphModule | None:
        """Rewrites the graph in place, or returns another module.

        Dead nodes and unused state are removed afterwards, and whether anything changed is seen from the graph.
        """

    def requires(self, graph_module: GraphModule) -> None:
        """The graph is well formed, and every node has the right value.

        Raises:
            GraphInvariantError: naming the node.
        """
        check_well_formed(graph_module)
        check_values(graph_module)

    def ensures(self, graph_module: GraphModule) -> None:
        """The same of the result.

        Raises:
            GraphInvariantError: naming the node.
        """
        check_well_formed(graph_module)
        check_values(graph_module)

    def ensures_change(self, before: GraphPicture, after: GraphPicture, graph_module: GraphModule) -> None:
        """Nodes that stay are as they were, new nodes say which rule made them.

        Raises:
            GraphInvariantError: naming the node.
        """
        check_change(before, after, graph_module, self.retargets, keeps_inputs=self.keeps_inputs)

    @contextlib.contextmanager
    def _blamed(self, kind: type[GraphInvariantError], what: str) -> Iterator[None]:
        """Turns a broken invariant into an error of the given kind that names the pass."""
        try:
            yield
        except GraphInvariantError as error:
            raise kind(f"{self.name} {what}: {error}") from error
