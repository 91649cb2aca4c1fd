"""Writes ``docs/laws.md`` from the table of laws: ``python -m tests.docs.laws_page`` (``make golden``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from passes.laws import table as laws
from passes.laws.outcomes import Law
from passes.laws.table import Entry

PAGE = Path(__file__).parents[2] / "docs" / "laws.md"
COMMAND = "make golden"

INTRODUCTION = f"""# The table of laws

Written by `{COMMAND}` from `passes/laws/table.py`; a test holds it to the code.

Every operator that takes low-rank features asks this table what becomes of them. The rewrite, the analysis and the
explanation all ask the same table, so they cannot disagree. An operator that is not in it needs the features themselves
and is reported as unknown: unknown is never assumed harmless.
"""

ON_SEVERAL = """
Some operators have another law for operands of another kind. A rule may still decide for the features at one use, where
an operand is not what the rule is for (a gate that differs from feature to feature, say); the verdict then says why.
"""


def as_page() -> str:
    """The page."""
    lines = [INTRODUCTION, *_meanings()]
    first, *others = laws.tables().items()
    for law in Law:
        entries = {name: entry for name, entry in first[1].items() if entry.law is law}
        if entries:
            lines += ["", f"## {law}", "", *_rows(entries)]
    lines.append(ON_SEVERAL)
    for operands, entries in others:
        lines += [f"### {operands[0].upper()}{operands[1:]}", "", *_rows(entries), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _meanings() -> list[str]:
    """The laws and what they mean, as the module's docstring has them."""
    return [line for line in (laws.__doc__ or "").splitlines() if line.startswith("|")]


def _rows(entries: Mapping[str, Entry]) -> list[str]:
    rows = sorted((_name(name), _said(entry)) for name, entry in entries.items())
    return ["| operator | what becomes of it |", "|---|---|", *(f"| `{name}` | {said} |" for name, said in rows)]


def _name(target: str) -> str:
    return "operator.getitem" if target == "<built-in function getitem>" else target


def _said(entry: Entry) -> str:
    if entry.rule is None:
        return f"restored before: {entry.reason}"
    first = (entry.rule.__doc__ or "").split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`").replace("|", "\\|")


def main() -> None:
    """Writes the page."""
    PAGE.write_text(as_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
