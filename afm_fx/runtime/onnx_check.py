"""Checks an ONNX file by the rules that a file for serving should keep; ``afm-fx check`` prints what it finds.

The rules, and what breaking one is:

- *storage* (error): every tensor lies inside the file, or in a file beside it, whole and as long as its shape says; no
  path is absolute, climbs out of the folder or is a link out of it (:mod:`afm_fx.io.onnx_file`).
- *opset* (error): the file says which version of the standard operators it uses, and the installed ``onnx`` knows it.
- *domain* (error): operators are ONNX's own. Runtimes for other hardware know no others.
- *control flow* (error): no ``If``, ``Loop``, ``Scan``, and no sequences or optional values: those cannot be recorded
  in a CUDA graph, and compilers refuse them.
- *checker* (error): ``onnx.checker`` with strict shape inference accepts it; not asked where the storage is wrong.
- *metadata* (error where a note is damaged, warning where it is missing): the file says what wrote it, from which plan
  and how (:mod:`afm_fx.program.recipe`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import onnx

from afm_fx.errors import ExportError, FileFormatError, UnsafeFileError
from afm_fx.io import (
    all_nodes,
    all_tensors,
    builtins_of,
    external_file,
    external_piece,
    operator_counts,
    read_onnx,
    render_table,
    storage_problems,
)
from afm_fx.program import PLAN_KEY, PRODUCER, RECIPE_KEY, FileRecipe, InputMapping, file_recipe
from afm_fx.runtime.artifact import FileValue, described, mapping_of, metadata_of
from afm_fx.runtime.onnx_parity import check_file

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_AGAIN = "Export it again with afm_fx"


class Severity(StrEnum):
    """How much a finding matters: an error breaks a rule."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        rule: see the module.
        where: the operator, tensor or note.
    """

    rule: str
    severity: Severity
    where: str
    message: str
    remedy: str

    def line(self) -> str:
        """The finding on one line."""
        return f"{self.severity} ({self.rule}): {self.where}: {self.message}. {self.remedy}"


@dataclass(frozen=True)
class CheckReport:
    """What a file holds, and what is wrong with it.

    Attributes:
        bytes: its size, files of weights included.
        weights: (name, bytes) of the files of weights.
        opset: version of the standard operators, None where the file does not say.
        producer: what wrote it, with the version.
        recipe: how it came about, None where it does not say.
        ids: (input, column, table, smallest, largest) of every column of ids that the file tells of.
        operators: (operator, count), the most frequent first.
        parameters: numbers in its tensors of floating numbers.
    """

    path: Path
    bytes: int
    weights: tuple[tuple[str, int], ...]
    opset: int | None
    producer: str
    recipe: FileRecipe | None
    inputs: tuple[FileValue, ...]
    outputs: tuple[FileValue, ...]
    ids: tuple[tuple[str, int, str, int | None, int | None], ...]
    operators: tuple[tuple[str, int], ...]
    parameters: int
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no rule is broken."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)

    def table(self) -> str:
        """The report as text."""
        recipe = ["not stated"] if self.recipe is None else self.recipe.lines()
        plan = None if self.recipe is None else self.recipe.recipe.plan
        operators = ", ".join(f"{name} {count}" for name, count in self.operators)
        rows = [
            ("opset", self.opset or "not stated"),
            ("producer", self.producer or "not stated"),
            ("recipe", "\n".join(recipe)),
            ("plan", plan or "none"),
            ("inputs", "\n".join(each.line() for each in self.inputs)),
            ("ids", self._ids()),
            ("outputs", "\n".join(each.line() for each in self.outputs)),
            ("parameters", f"{self.parameters:,}"),
            ("bytes", f"{self.bytes:,}"),
            ("weights beside it", ", ".join(f"{name} ({size:,})" for name, size in self.weights) or "none"),
            ("operators", f"{sum(count for _, count in self.operators)}: {operators}"),
        ]
        lines = [render_table(f"Checked {self.path}", ("property", "value"), rows, left=2)]
        lines += [finding.line() for finding in self.findings]
        lines.append("every rule is kept" if self.passed else "rules are broken")
        return "\n".join(lines)

    def _ids(self) -> str:
        if not self.ids:
            return "the file does not say"
        columns = Counter(name for name, *_ in self.ids)
        return ", ".join(f"{count} columns of {name}" for name, count in columns.items())

    def to_json(self) -> str:
        """Everything as a JSON document."""
        content = {**builtins_of(self), "passed": self.passed}
        return json.dumps(content, indent=2)


def check_onnx(path: str | os.PathLike[str]) -> CheckReport:
    """Checks a file, of this package or any other; nothing of it is executed, and weights are not read.

    Raises:
        FileFormatError: there is no such file, or it is no ONNX file.
    """
    file = Path(path)
    model = read_onnx(file)
    findings = static_findings(file, model)
    if not any(finding.rule == "storage" for finding in findings):
        try:
            check_file(file)
        except ExportError as error:
            findings = (*findings, _error("checker", "file", str(error), "Export it again"))
    recipe, mapping, _ = _notes(model)
    _, inputs, outputs = described(model, recipe)
    weights = _weight_files(file, model)
    floats = (tensor.dims for tensor in all_tensors(model) if _is_float(tensor))
    return CheckReport(
        path=file,
        bytes=file.stat().st_size + sum(weights.values()),
        weights=tuple(weights.items()),
        opset=_opset_version(model),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        recipe=recipe,
        inputs=inputs,
        outputs=outputs,
        ids=() if mapping is None else tuple(_ids(mapping)),
        operators=operator_counts(model),
        parameters=sum(math.prod(dims) for dims in floats if all(size >= 0 for size in dims)),
        findings=findings,
    )


def static_findings(path: Path, model: onnx.ModelProto) -> tuple[Finding, ...]:
    """What is wrong with a file as far as reading it tells."""
    rules: tuple[Callable[[Path, onnx.ModelProto], Iterator[Finding]], ...] = (
        _storage, _opset, _domain, _control_flow, _metadata,
    )  # fmt: skip
    return tuple(finding for rule in rules for finding in rule(path, model))


def refuse_findings(path: Path, *, control_flow: bool) -> onnx.ModelProto:
    """Refuses an exported file that breaks a rule or lacks a note, as far as reading it tells.

    Args:
        control_flow: whether the program itself decides at run time what is computed, so that the file may.

    Returns:
        The file's graph.

    Raises:
        ExportError: with the first finding.
    """
    model = read_onnx(path)
    for finding in static_findings(path, model):
        if control_flow and finding.rule == "control flow":
            continue
        raise ExportError(f"the exported file keeps not all rules: {finding.line()}")
    return model


def _error(rule: str, where: str, message: str, remedy: str = _AGAIN) -> Finding:
    return Finding(rule, Severity.ERROR, where, message, remedy)


def _storage(path: Path, model: onnx.ModelProto) -> Iterator[Finding]:
    for name, problem in storage_problems(path, model):
        unsafe = isinstance(problem, UnsafeFileError)
        remedy = "Do not open this file: it was made to read others" if unsafe else "Export or copy it again"
        yield _error("storage", f"tensor '{name}'", str(problem), remedy)


def _opset(_: Path, model: onnx.ModelProto) -> Iterator[Finding]:
    version, newest = _opset_version(model), onnx.defs.onnx_opset_version()
    if version is None:
        yield _error("opset", "opset_import", "the version of the operators is not stated")
    elif not 1 <= version <= newest:
        message = f"version {version} is none that onnx {onnx.__version__} knows (1 to {newest})"
        yield _error("opset", "opset_import", message, "Export with an older opset, or install a newer onnx")


def _domain(_: Path, model: onnx.ModelProto) -> Iterator[Finding]:
    names = (f"{node.domain}::{node.op_type}" for node in all_nodes(model) if node.domain not in STANDARD_DOMAINS)
    for name, count in sorted(Counter(names).items()):
        message = f"{count} operators are outside the standard domain"
        yield _error("domain", name, message, "Export with standard operators; other runtimes do not know these")
    for function in model.functions:
        name = f"{function.domain}::{function.name}"
        remedy = "Inline the functions of the file (onnx.inliner)"
        yield _error("domain", name, "the file defines an operator of its own", remedy)


def _control_flow(_: Path, model: onnx.ModelProto) -> Iterator[Finding]:
    for node in all_nodes(model):
        kind = node.op_type
        decides = kind in _CONTROL_FLOW or "Sequence" in kind or kind.startswith("Optional")
        if decides and node.domain in STANDARD_DOMAINS:
            message = f"{kind} decides at run time what is computed"
            remedy = "Write the model without it; a CUDA graph cannot record it"
            yield _error("control flow", f"operator '{node.name}'", message, remedy)


def _metadata(_: Path, model: onnx.ModelProto) -> Iterator[Finding]:
    if not model.producer_name or not model.producer_version:
        yield Finding("metadata", Severity.WARNING, "producer", "it does not say what wrote it", _AGAIN)
    recipe, _mapping, damaged = _notes(model)
    notes = metadata_of(model)
    yield from damaged
    if RECIPE_KEY not in notes:
        yield Finding("metadata", Severity.WARNING, "recipe", "it does not say how it came about", _AGAIN)
    elif recipe is not None and (recipe.recipe.plan != notes.get(PLAN_KEY) or model.producer_name != PRODUCER):
        yield _error("metadata", "recipe", "its notes on plan and producer contradict it")


def _notes(model: onnx.ModelProto) -> tuple[FileRecipe | None, InputMapping | None, list[Finding]]:
    """What a file says of how it came about and of typed inputs, None where it says nothing or the note is damaged."""
    recipe, mapping, damaged = None, None, []
    try:
        recipe = file_recipe(metadata_of(model))
    except FileFormatError as error:
        damaged.append(_error("metadata", "recipe", str(error)))
    try:
        mapping = mapping_of(model)
    except FileFormatError as error:
        damaged.append(_error("metadata", "typed inputs", str(error)))
    return recipe, mapping, damaged


def _opset_version(model: onnx.ModelProto) -> int | None:
    """Of the standard operators."""
    return next((opset.version for opset in model.opset_import if opset.domain in STANDARD_DOMAINS), None)


def _is_float(tensor: onnx.TensorProto) -> bool:
    kinds = onnx.TensorProto
    return tensor.data_type in {kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16, kinds.BFLOAT16}


def _weight_files(path: Path, model: onnx.ModelProto) -> dict[str, int]:
    """Name and size of the files that tensors lie in, of those that may be looked at."""
    files: dict[str, int] = {}
    for tensor in all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            with contextlib.suppress(FileFormatError, OSError):
                location, _, _ = external_piece(tensor)
                if location not in files:
                    files[location] = external_file(path.parent.resolve(), location).stat().st_size
    return files


def _ids(mapping: InputMapping) -> Iterator[tuple[str, int, str, int | None, int | None]]:
    bounds = {(bound.input, bound.column): bound for bound in mapping.bounds}
    for each in (each for each in mapping.inputs if each.holds_ids):
        for place in range(len(each.columns or ())):
            bound = bounds.get((each.name, place))
            known = ("", None, None) if bound is None else (bound.table, bound.low, bound.high - 1)
            yield each.name, place, *known
