"""Holds the house: rooms import downwards and by their doors, ``afm_fx`` imports ``passes`` and never back."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("afm_fx", "passes")
FILES = {"io", "json", "os", "pathlib", "pickle", "shutil", "tempfile"}
PASSES_MAY_IMPORT = {"lazy_loader", "numpy", "torch", "passes"} | (sys.stdlib_module_names - FILES)
"""Graph passes know graphs and tensors: no data, no ONNX, no files."""

OPTIONAL = {
    "deepctr_torch", "jinja2", "matplotlib", "mlperf_loadgen", "onnxruntime", "pandas", "pyarrow", "pygraphviz",
    "requests", "scipy", "sklearn", "torchrec",
}  # fmt: skip
"""Distributions of an extra: importing ``afm_fx`` must not need them."""

FROM_THE_GROUND = (
    "passes.graph", "passes.canonical", "passes.sites", "passes.codes", "passes.laws", "passes.serving", "passes",
    "afm_fx.errors", "afm_fx.version", "afm_fx.io", "afm_fx.program", "afm_fx.data", "afm_fx.calibration",
    "afm_fx.runtime", "afm_fx.measure", "afm_fx.planning", "afm_fx.recovery", "afm_fx.large_tables", "afm_fx.report",
    "afm_fx.compression", "afm_fx", "afm_fx.commands", "afm_fx.__main__",
)  # fmt: skip
"""The rooms, and the modules that stand outside of any; each may import those before it. Commands call what
a user would: the names at the top of ``afm_fx``."""

OUTSIDE_OF_ROOMS = ("passes.sink_codes", "passes.pipeline")
"""Modules of ``passes`` that stand above its rooms."""

DRAWS_A_PAGE = {"afm_fx/report/compression_report.py"}
"""May import inside a function: what draws pages imports the report, which offers them."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


LIBRARY = modules("afm_fx") + modules("passes")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[str, int]]:
    """Absolute names of the modules imported by the statements, each with its line."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.module or "", node.lineno


def imports(path: Path, *, everywhere: bool = True) -> list[tuple[str, int]]:
    """Modules that a file imports, each with its line; ``everywhere`` also looks inside functions."""
    tree = tree_of(path)
    return list(imported(ast.walk(tree) if everywhere else ast.iter_child_nodes(tree)))


def roots(path: Path, *, everywhere: bool = True) -> dict[str, int]:
    return {name.split(".")[0]: line for name, line in imports(path, everywhere=everywhere)}


def room_of(module: str) -> str:
    """The room of a module, or the package of one that stands outside of any."""
    parts = module.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in FROM_THE_GROUND else parts[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def ours(path: Path) -> list[tuple[str, int]]:
    return [(name, line) for name, line in imports(path) if name.split(".")[0] in ("afm_fx", "passes")]


def test_a_room_imports_only_rooms_below_it():
    above = [
        f"{shown(path)}:{line} imports {name}"
        for path in LIBRARY
        for name, line in ours(path)
        if FROM_THE_GROUND.index(room_of(name)) > FROM_THE_GROUND.index(room_of(module_of(path)))
    ]
    assert not above, "\n".join(above)


def test_a_room_is_entered_by_its_door():
    past = [
        f"{shown(path)}:{line} reaches past the door for {name}"
        for path in LIBRARY + modules("benchmarks") + modules("examples")
        for name, line in ours(path)
        if name not in (room_of(name), *OUTSIDE_OF_ROOMS) and room_of(name) != room_of(module_of(path))
    ]
    assert not past, "\n".join(past)


def test_nothing_of_ours_is_imported_inside_a_function():
    inside = {
        f"{shown(path)}:{line} imports {name}"
        for path in LIBRARY
        for function in ast.walk(tree_of(path))
        if isinstance(function, ast.FunctionDef) and shown(path) not in DRAWS_A_PAGE
        for name, line in imported(ast.walk(function))
        if name.split(".")[0] in ("afm_fx", "passes")
    }
    assert not inside, "\n".join(sorted(inside))


@pytest.mark.parametrize("room", [room for room in FROM_THE_GROUND if (ROOT / room.replace(".", "/")).is_dir()])
def test_a_door_tells_what_the_room_is_for_and_hands_on_what_is_there(room):
    door = importlib.import_module(room)
    assert len((door.__doc__ or "").split()) > 20
    assert door.__all__
    for name in door.__all__:
        assert getattr(door, name) is not None
    folder = ROOT / room.replace(".", "/")
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    if "." in room:
        unread = {name for name in files if f"``{name}``" not in (door.__doc__ or "")}
        assert not unread, f"{room}'s docstring does not say when to read {sorted(unread)}"


def test_a_door_hands_on_only_what_others_use():
    readers = [path for top in (*TOPS, "benchmarks", "examples") for path in (ROOT / top).rglob("*.py*")]
    texts = {
        path: path.read_text("utf-8") for path in (*readers, *(ROOT / "docs").glob("*.md")) if path.suffix != ".pyc"
    }
    words = {path: set(re.findall(r"\w+", text)) for path, text in texts.items()}
    unused = [
        f"{shown(door)} hands on {name}, which nobody uses"
        for top in TOPS
        for door in (ROOT / top).glob("*/__init__.pyi")
        for name in re.findall(r"as (\w+)", texts[door])
        if not any(name in found for path, found in words.items() if path.parent != door.parent)
        and not any(f"{door.parent.name}.{name}" in text for text in texts.values())
    ]
    assert not unused, "\n".join(unused)


def test_a_module_that_is_imported_whole_has_no_namesake_at_its_door():
    hidden = [
        f"{shown(path)}:{node.lineno} may get {name} as what the door hands on, or as the module"
        for path in LIBRARY
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.module == room_of(module_of(path))
        for name in (alias.name for alias in node.names)
        if (ROOT / node.module.replace(".", "/") / f"{name}.py").exists()
        and not inspect.ismodule(getattr(importlib.import_module(node.module), name))
    ]
    assert not hidden, "\n".join(hidden)


def test_passes_know_only_tensors_graphs_and_themselves():
    foreign = {shown(path): found for path in modules("passes") if (found := set(roots(path)) - PASSES_MAY_IMPORT)}
    assert not foreign


def test_afm_fx_imports_packages_of_extras_only_where_they_are_used():
    eager = {
        shown(path): found for path in modules("afm_fx") if (found := OPTIONAL & set(roots(path, everywhere=False)))
    }
    assert not eager


def test_the_library_imports_neither_tests_nor_benchmarks():
    assert not [shown(path) for path in LIBRARY if {"tests", "benchmarks"} & set(roots(path))]


def test_both_packages_are_there_and_typed():
    for package in ("afm_fx", "passes"):
        assert len(modules(package)) > 50
        assert (ROOT / package / "py.typed").exists()


def test_the_passes_really_use_torch_fx():
    assert any("torch" in roots(path) for path in modules("passes"))
