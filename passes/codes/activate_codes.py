"""Puts an activation between the two factors of a Linear, as the authors of Atomic Feature Mimicking do in a variant.

Replaces ``linear(code, A, o)`` with ``linear(relu(code), A, o)`` where the code is a Linear's own.

This is the one pass here that changes what a model computes, and by much: a code holds as many negative numbers as
positive ones. It makes sense before training only, and no pipeline holds it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import partial

from torch.fx import GraphModule, Node

from passes.codes.restore import RULE as RESTORE
from passes.graph import FACTORED_SITE, PROVENANCE, GraphPass, args_of, aten, call

RULE = "activate code"


class ActivateCodes(GraphPass):
    """Puts a ReLU behind every code of a Linear that Linears decode and nothing else reads.

    A code that is absorbed by another layer, or that products are computed on, stays as it is: there the decoder is no
    layer of its own.

    Attributes:
        sites: names of the sites whose codes were activated in the last run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: tuple[str, ...] = ()

    def rewrite(self, graph_module: GraphModule) -> None:
        found = list(_decoded_codes(graph_module))
        for code in found:
            with graph_module.graph.inserting_after(code):
                activated = call(graph_module.graph, aten.relu.default, code, rule=RULE, like=code)
            code.replace_all_uses_with(activated, delete_user_cb=partial(operator.is_not, activated))
        self.sites = tuple(code.meta[FACTORED_SITE][0] for code in found)


def _decoded_codes(module: GraphModule) -> Iterator[Node]:
    """The nodes of Linears' codes that are read by decoders alone."""
    for node in module.graph.nodes:
        is_code = FACTORED_SITE in node.meta and node.target is aten.linear.default
        if is_code and node.users and all(_decodes(user, node) for user in node.users):
            yield node


def _decodes(user: Node, code: Node) -> bool:
    is_decoder = user.meta.get(PROVENANCE) == RESTORE and user.target is aten.linear.default
    return is_decoder and args_of(user)[0] is code
