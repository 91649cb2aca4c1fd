"""Counts how many random mistakes the tests notice: ``make mutants``.

A mutant is the library with one small mistake. So many of them are drawn, uniformly over all places of ``SCOPE`` where
one can be made:

- a comparison moved (``<`` to ``<=`` or ``>=``, ``==`` to ``!=``, ``in`` to ``not in``, ...),
- ``+`` and ``-``, ``*`` and ``/``, ``and`` and ``or`` swapped, ``//`` turned into ``*``,
- a number changed by one or a truth value turned around, also in defaults of arguments,
- a condition negated, a ``not`` dropped,
- what is returned replaced by None, or by its opposite where a truth value is promised,
- a statement removed: a call, a ``raise``, a step of a loop, an assignment into an object or a container.

Left alone are text, annotations, decorators, imports for type checkers, and ``strict=`` of ``zip``, which guards what
holds already.

First every test file runs once, to learn how long each test takes and which lines it executes. Then each mutant meets
the tests that execute its line, shortest first, then the others of their files, up to ``--seconds`` of CPU time
together. The first failure settles it, and so does taking five times as long as usual. All happens in a copy of the
tree, one process at a time, each forked from one that has loaded torch. What survives is shown with its line and
change: a missing test, or a mutant that computes the same.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("afm_fx", "passes", "tests", "benchmarks", "examples")
SCOPE = ("passes", "afm_fx/planning", "afm_fx/runtime", "afm_fx/calibration")
TESTS = ("tests/passes", "tests/planning", "tests/runtime", "tests/calibration", "tests/test_compression.py")
HEAVY = (
    "numpy",
    "torch",
    "torch.export",
    "torch.onnx",
    "onnxruntime",
    "onnxscript",
    "onnx_ir",
    "hypothesis.strategies",
)
QUIET = ("-q", "-p", "no:cacheprovider", "--tb=no", "-W", "ignore", "--hypothesis-profile=unshrunk")
LONGEST_FILE = 30

COMPARISONS: dict[Any, Any] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
SWAPS: dict[Any, Any] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


class Mutant(NamedTuple):
    """One mistake, and the file with it."""

    file: str
    line: int
    before: str
    after: str
    source: bytes


def replacements(node: Any, promised: str) -> Iterator[str]:
    """What may stand in the place of a node; ``promised`` is the return type of the function around it."""
    match node:
        case ast.Compare():
            for at, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    ops = [*node.ops[:at], other(), *node.ops[at + 1 :]]
                    yield ast.unparse(ast.Compare(node.left, ops, node.comparators))
        case ast.BinOp() if type(node.op) in SWAPS:
            yield ast.unparse(ast.BinOp(node.left, SWAPS[type(node.op)](), node.right))
        case ast.BoolOp():
            yield ast.unparse(ast.BoolOp(SWAPS[type(node.op)](), node.values))
        case ast.UnaryOp(op=ast.Not()):
            yield ast.unparse(node.operand)
        case ast.Constant(value=bool(value)):
            yield repr(not value)
        case ast.Constant(value=int(number) | float(number)):
            yield repr(number + 1)
        case ast.Return(value=ast.expr() as result) if not isinstance(result, ast.Constant):
            yield f"return not ({ast.unparse(result)})" if promised == "bool" else "return None"
        case ast.Expr() if not isinstance(node.value, ast.Constant):
            yield "pass"
        case (
            ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_])
            | ast.Raise() | ast.Continue() | ast.Break() | ast.AugAssign() | ast.Delete()
        ):  # fmt: skip
            yield "pass"


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in its order."""
    starts, found = [0], list[Mutant]()
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def replace(node: Any, text: str) -> None:
        begin, end = (starts[line - 1] + column for line, column in (
            (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset),
        ))  # fmt: skip
        new = text if isinstance(node, ast.stmt) else f"({text})"
        found.append(Mutant(file, node.lineno, ast.unparse(node), text, source[:begin] + new.encode() + source[end:]))

    def visit(node: Any, promised: str) -> None:
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            return
        if isinstance(node, ast.FunctionDef):
            promised = ast.unparse(node.returns) if node.returns else ""
        for text in replacements(node, promised):
            replace(node, text)
        for name, value in ast.iter_fields(node):
            for part in value if isinstance(value, list) else [value]:
                if name in {"test", "ifs"} and not isinstance(part, ast.Compare | ast.UnaryOp):
                    replace(part, f"not ({ast.unparse(part)})")
                left_alone = name in {"annotation", "returns", "decorator_list"} or getattr(part, "arg", "") == "strict"
                if isinstance(part, ast.AST) and not left_alone:
                    visit(part, promised)

    visit(ast.parse(source), "")
    return found


def in_child(tree: Path, seconds: float, work: Callable[[], int]) -> int:
    """The exit status of ``work`` in a forked process inside of the tree; negative where it takes more CPU time."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        os.chdir(tree)
        sys.path[:] = [str(tree), *(path for path in sys.path if path not in {"", str(ROOT)})]
        for name in [name for name in sys.modules if name.split(".")[0] in FOLDERS]:
            del sys.modules[name]
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os._exit(work())
    finally:
        os._exit(99)


class Recorder:
    """A plugin of pytest: CPU seconds of each test that passes, and which lines it executes.

    What a fixture of a whole file executes counts for the file. A file is left after :data:`LONGEST_FILE` seconds.
    """

    def __init__(self, tree: Path) -> None:
        self.measured = coverage.Coverage(
            data_file=None, config_file=False, source=[str(tree / name) for name in SCOPE]
        )
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        start = time.process_time()
        self.measured.switch_context(item.nodeid)
        self.seconds[item.nodeid] = 0.0
        result = yield
        if item.nodeid in self.seconds:
            self.seconds[item.nodeid] = time.process_time() - start
        item.session.shouldstop = sum(self.seconds.values()) > LONGEST_FILE
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        item = request._pyfuncitem.nodeid
        self.measured.switch_context(item if fixturedef.scope == "function" else item.split("::")[0])
        result = yield
        self.measured.switch_context(item)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.seconds.pop(report.nodeid, None)


def recorded(tree: Path, file: str, cache: Path) -> dict[str, Any]:
    """The seconds of the tests of one file, and by source file and line which of them execute it."""

    def record() -> int:
        recorder = Recorder(tree)
        with recorder.measured.collect():
            status = pytest.main([*QUIET, file], plugins=[recorder])
        data = recorder.measured.get_data()
        lines = {str(Path(each).relative_to(tree)): data.contexts_by_lineno(each) for each in data.measured_files()}
        cache.write_text(json.dumps({"seconds": recorder.seconds, "lines": lines}))
        return int(status)

    if not cache.exists():
        print(f"{file}: status {in_child(tree, 20 * LONGEST_FILE, record)} of pytest", flush=True)
    return json.loads(cache.read_text())


class Judge:
    """Lets the tests that execute a line meet the mutants of that line."""

    def __init__(self, tree: Path, maps: list[dict[str, Any]], seconds: float) -> None:
        self.tree, self.limit = tree, seconds
        self.seconds = {test: seconds for one in maps for test, seconds in one["seconds"].items()}
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for one in maps:
            for file, lines in one["lines"].items():
                for line, tests in lines.items():
                    self.lines[file][int(line)].update(filter(None, tests))

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Those that execute the line (or, where that happens at import, the file), then the others beside them."""
        lines = self.lines[mutant.file]
        near = lines[mutant.line] or set().union(*lines.values())
        files = {test.split("::")[0] for test in near}
        tests = [test for test in self.seconds if test.split("::")[0] in files]
        chosen, left = [], self.limit
        for test in sorted(tests, key=lambda test: (test not in near, self.seconds[test])):
            left -= self.seconds[test]
            chosen += [test] if left > 0 else []
        return chosen

    def verdict(self, mutant: Mutant) -> str:
        """What the tests say."""
        path, tests = self.tree / mutant.file, self.tests_of(mutant)
        kept, times = path.read_bytes(), path.stat()
        try:
            path.write_bytes(mutant.source)
            os.utime(path, (times.st_atime, times.st_mtime + 1000))  # what is compiled is of another age
            for part in filter(None, (tests[:12], tests[12:])):
                usual = sum(self.seconds[test] for test in part)
                run = functools.partial(pytest.main, [*QUIET, "-x", *part])
                status = in_child(self.tree, 30 + 5 * usual, run)
                if status:
                    return "caught (takes too long)" if status < 0 else "caught"
            return f"SURVIVED {len(tests)} tests"
        finally:
            path.write_bytes(kept)
            os.utime(path, (times.st_atime, times.st_mtime))


def main() -> None:
    """Draws mutants, judges them, and prints what survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="CPU time of the tests that a mutant meets at most")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants to judge, of those that are drawn")
    parser.add_argument("--work-dir", type=Path, required=True, help="for the copy of the tree and what was recorded")
    options = parser.parse_args()

    tree = options.work_dir.resolve() / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name)
    shutil.copy(ROOT / "pyproject.toml", tree)

    sources = {str(p.relative_to(ROOT)): p.read_bytes() for top in SCOPE for p in sorted((ROOT / top).rglob("*.py"))}
    every = [mutant for file, source in sources.items() for mutant in mutants_of(file, source)]
    drawn = list(enumerate(random.Random(options.seed).sample(every, options.count)))  # noqa: S311 a sample, no secret
    chosen = [drawn[number] for number in options.only] if options.only else drawn
    print(f"{options.count} of {len(every)} mutants, seed {options.seed}", flush=True)

    for module in HEAVY:
        importlib.import_module(module)
    tops = [ROOT / top for top in TESTS]
    files = [path for top in tops for path in (sorted(top.rglob("test_*.py")) if top.is_dir() else [top])]
    library = b"".join(sources.values())
    caches = [f"{path.stem}-{hashlib.sha256(library + path.read_bytes()).hexdigest()[:16]}.json" for path in files]
    judge = Judge(
        tree,
        [recorded(tree, str(p.relative_to(ROOT)), options.work_dir / c) for p, c in zip(files, caches, strict=True)],
        options.seconds,
    )
    caught = 0
    for number, mutant in chosen:
        start = time.perf_counter()
        verdict = judge.verdict(mutant)
        caught += verdict.startswith("caught")
        change = "" if verdict.startswith("caught") else f"\n    {mutant.before}\n    -> {mutant.after}"
        seconds = time.perf_counter() - start
        print(f"{number} {mutant.file}:{mutant.line} {verdict} ({seconds:.0f} s){change}", flush=True)
    print(f"caught {caught} of {len(chosen)}")


if __name__ == "__main__":
    main()
