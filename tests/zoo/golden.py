"""The golden verdicts: what the pass does at every use of every site of every covered model.

``python -m tests.zoo.golden`` (``make golden``) writes them again, with the page ``docs/verdicts.md``. Read the diff: a
use that was absorbed or on codes and is now restored is a loss, however green everything else is.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from afm_fx.program.program import Program
from passes.laws.verdicts import Fate
from passes.sink_codes import analyze
from tests.zoo.models import ZOO, captured

GOLDEN = Path(__file__).with_name("golden_verdicts.json")
PAGE = Path(__file__).parents[2] / "docs" / "verdicts.md"
COMMAND = "make golden"
FATES = (Fate.ABSORBED, Fate.ON_CODES, Fate.RESTORED, Fate.REFUSED)


@dataclass(frozen=True, order=True)
class Use:
    """Uses of one kind of site that share operator, fate, law and reason.

    Attributes:
        kind: embedding or linear.
        operator: the consuming operator; empty for a refused site.
        fate: absorbed, on codes, restored or refused.
        law: the law that decided; empty for a refused site.
        reason: one sentence.
        count: how many uses.
    """

    kind: str
    operator: str
    fate: str
    law: str
    reason: str
    count: int = 0


def uses(program: Program) -> tuple[Use, ...]:
    """Every use of every site of a program, alike ones counted together."""
    analysis = analyze(program.graph_module)
    kinds = {site.name: str(site.kind) for site in analysis.sites}
    counted = collections.Counter(
        Use(kinds[each.site], each.operator, str(each.fate), str(each.law), each.reason) for each in analysis.verdicts
    )
    counted.update(
        Use(str(site.kind), "", str(Fate.REFUSED), "", _without_names(site.refusal))
        for site in analysis.sites
        if site.refusal is not None
    )
    return tuple(sorted(replace(use, count=count) for use, count in counted.items()))


def _without_names(reason: str) -> str:
    """A refusal without the node that it names: names differ between releases of torch."""
    return reason.partition(" ('")[0]


def current(names: Iterable[str]) -> dict[str, tuple[Use, ...]]:
    """The verdicts of models of the zoo as they are now."""
    return {name: uses(captured(name)[1]) for name in names}


def covered() -> list[str]:
    """The models of the zoo that can be captured, in the zoo's order."""
    return [entry.name for entry in ZOO if entry.refused is None]


def read() -> dict[str, tuple[Use, ...]]:
    """The verdicts on file."""
    models = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return {name: tuple(Use(**use) for use in models[name]) for name in models}


def as_json(models: Mapping[str, Iterable[Use]]) -> str:
    """One line per use, so that a diff shows what became of it."""
    parts = []
    for name, lines in models.items():
        rows = ",\n".join(f"    {json.dumps(asdict(use))}" for use in lines)
        parts.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def as_page(models: Mapping[str, Iterable[Use]]) -> str:
    """The page for people: a summary, then a table of uses per model."""
    listed = {name: tuple(lines) for name, lines in models.items()}
    lines = [
        "# Verdicts in the covered models",
        "",
        f"Written by `{COMMAND}` from the analysis alone, without data; a test holds it to the code. What the verdicts",
        "mean is told in [What it does, and where it stops](explain.md#verdicts).",
        "",
        "Uses of tables and Linears, counted per verdict. A Linear's own restore before an activation is the chain",
        "Linear → activation → Linear, which is rewritten into thin Linears around the activation.",
        "",
        f"| model | {' | '.join([f'table {fate}' for fate in FATES] + [f'Linear {fate}' for fate in FATES])} |",
        f"|---|{'---:|' * 2 * len(FATES)}",
    ]
    for name, found in listed.items():
        numbers = [_total(found, kind, fate) for kind in ("embedding", "linear") for fate in FATES]
        lines.append(f"| [{name}](#{name.lower()}) | {' | '.join(str(number or '') for number in numbers)} |")
    for name, found in listed.items():
        lines += ["", f"## {name}", "", "| uses | of | operator | verdict | reason |", "|---:|---|---|---|---|"]
        lines += [
            f"| {use.count} | {use.kind} | {f'`{use.operator}`' if use.operator else ''} | {use.fate} | {use.reason} |"
            for use in found
        ]
    return "\n".join(lines) + "\n"


def _total(found: Iterable[Use], kind: str, fate: Fate) -> int:
    return sum(use.count for use in found if use.kind == kind and use.fate == fate)


def main() -> None:
    """Writes the verdicts and the page."""
    torch.set_num_threads(1)
    models = current(covered())
    GOLDEN.write_text(as_json(models), encoding="utf-8")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(as_page(models), encoding="utf-8")


if __name__ == "__main__":
    main()
