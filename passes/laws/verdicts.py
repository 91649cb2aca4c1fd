"""Verdicts: what became of one use of one factored site, and why."""

from __future__ import annotations

import types
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch.fx import Node

from passes.laws.outcomes import Law

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
