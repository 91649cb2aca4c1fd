"""Holds the direction of the dependencies: ``afm_fx`` imports ``passes``, never back."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {"io", "json", "os", "pathlib", "pickle", "shutil", "tempfile"}
PASSES_MAY_IMPORT = {"numpy", "torch", "passes"} | (sys.stdlib_module_names - FILES)
"""Graph passes know graphs and tensors: no data, no ONNX, no files."""

OPTIONAL = {
    "deepctr_torch", "jinja2", "matplotlib", "mlperf_loadgen", "onnxruntime", "pandas", "pyarrow", "pygraphviz",
    "requests", "scipy", "sklearn", "torchrec",
}  # fmt: skip
"""Distributions of an extra: importing ``afm_fx`` must not need them."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[str, int]]:
    """Absolute names of the modules imported by the statements, each with its line."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.module or "", node.lineno


def roots(path: Path, *, everywhere: bool = True) -> dict[str, int]:
    """Top-level packages that a file imports, with a line; ``everywhere`` also looks inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else ast.iter_child_nodes(tree)
    return {name.split(".")[0]: line for name, line in imported(nodes)}


@pytest.mark.parametrize("path", modules("passes"), ids=lambda path: path.name)
def test_passes_know_only_tensors_graphs_and_themselves(path):
    foreign = {name: line for name, line in roots(path).items() if name not in PASSES_MAY_IMPORT}
    assert not foreign, f"{path.relative_to(ROOT)} imports {foreign} (module: line)"


@pytest.mark.parametrize("path", modules("afm_fx"), ids=lambda path: path.name)
def test_afm_fx_imports_packages_of_extras_only_where_they_are_used(path):
    eager = {name: line for name, line in roots(path, everywhere=False).items() if name in OPTIONAL}
    assert not eager, f"{path.relative_to(ROOT)} imports {eager} (module: line) at the top"


@pytest.mark.parametrize("path", modules("afm_fx") + modules("passes"), ids=lambda path: path.name)
def test_the_library_imports_neither_tests_nor_benchmarks(path):
    assert not {"tests", "benchmarks"} & set(roots(path))


def test_both_packages_are_there_and_typed():
    for package in ("afm_fx", "passes"):
        assert len(modules(package)) > 3
        assert (ROOT / package / "py.typed").exists()


def test_the_passes_really_use_torch_fx():
    assert any("torch" in roots(path) for path in modules("passes"))
