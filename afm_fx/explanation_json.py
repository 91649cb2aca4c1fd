"""An explanation as JSON: one document, versioned, written and read here.

| key | value |
|---|---|
| ``format``, ``version`` | ``"afm_fx.explanation"`` and 1; another version is refused |
| ``parameters``, ``operators``, ``front_door``, ``warnings`` | as in :class:`~afm_fx.explanation.Explanation` |
| ``sites`` | list, in graph order: the fields of :class:`~passes.sites.Site`, and ``uses`` |
| ``sites[].uses`` | list: ``kind`` of the chain, its ``path`` (node names), and ``verdict`` |
| ``sites[].uses[].verdict`` | the fields of :class:`~passes.sink_codes.Verdict` but for ``site`` |
| ``flow`` | list, in graph order: the fields of :class:`~afm_fx.flow.FlowNode` |

``kind``, ``fate`` and ``law`` are the words of :class:`~passes.sites.SiteKind`, :class:`~passes.sink_codes.Fate` and
:class:`~passes.outcomes.Law`. Within a version, keys may be added, and none changes its meaning or goes: a reader
ignores the keys that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from afm_fx.chains import Chain
from afm_fx.errors import FileFormatError
from afm_fx.flow import FlowEdge, FlowNode
from passes.outcomes import Law
from passes.sink_codes import Fate, Verdict
from passes.sites import Site, SiteKind

if TYPE_CHECKING:
    from afm_fx.explanation import Explanation

FORMAT = "afm_fx.explanation"
VERSION = 1

Read = TypeVar("Read")


def explanation_to_json(explanation: Explanation) -> str:
    """The document of an explanation; the same explanation gives the same text."""
    uses: dict[str, list[dict[str, Any]]] = {site.name: [] for site in explanation.sites}
    for chain in explanation.chains:
        verdict = {name: value for name, value in asdict(chain.verdict).items() if name != "site"}
        uses[chain.site.name].append({"kind": chain.kind, "path": chain.path, "verdict": verdict})
    document = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": explanation.parameters,
        "operators": explanation.operators,
        "front_door": explanation.front_door,
        "warnings": explanation.warnings,
        "sites": [{**asdict(site), "uses": uses[site.name]} for site in explanation.sites],
        "flow": [asdict(node) for node in explanation.flow],
    }
    return json.dumps(document, indent=2)


def explanation_from_json(text: str) -> Explanation:
    """Reads an explanation.

    Raises:
        FileFormatError: the text is damaged, or of another kind or version.
    """
    from afm_fx.explanation import Explanation  # noqa: PLC0415 - it writes itself with this module

    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"not an explanation: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileFormatError("not an explanation: the format is not named in it")
    if content.get("version") != VERSION:
        raise FileFormatError(f"an explanation of version {content.get('version')}; {VERSION} is read here")
    try:
        sites = [(_site(entry), entry["uses"]) for entry in content["sites"]]
        return Explanation(
            parameters=int(content["parameters"]),
            operators=int(content["operators"]),
            front_door=str(content["front_door"]),
            warnings=tuple(content["warnings"]),
            sites=tuple(site for site, _ in sites),
            chains=tuple(_chain(site, use) for site, uses in sites for use in uses),
            flow=tuple(_flow_node(entry) for entry in content["flow"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"a damaged explanation: {error!r}") from error


def _site(entry: Mapping[str, Any]) -> Site:
    return _build(Site, entry, kind=SiteKind(entry["kind"]), nodes=tuple(entry["nodes"]))


def _chain(site: Site, use: Mapping[str, Any]) -> Chain:
    entry = use["verdict"]
    fate, law, path = Fate(entry["fate"]), Law(entry["law"]), tuple(entry["path"])
    verdict = _build(Verdict, entry, site=site.name, fate=fate, law=law, path=path)
    return Chain(use["kind"], site, tuple(use["path"]), verdict)


def _flow_node(entry: Mapping[str, Any]) -> FlowNode:
    return _build(
        FlowNode,
        entry,
        shape=tuple(entry["shape"]),
        fate=None if entry["fate"] is None else Fate(entry["fate"]),
        carries=tuple(entry["carries"]),
        inputs=tuple(_build(FlowEdge, edge) for edge in entry["inputs"]),
    )


def _build(made: type[Read], entry: Mapping[str, Any], **converted: Any) -> Read:
    """A dataclass from the entries that it knows, some of them converted already."""
    known = {field.name for field in fields(made)}  # type: ignore[arg-type]
    return made(**{**{name: value for name, value in entry.items() if name in known}, **converted})
