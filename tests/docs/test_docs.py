"""The documentation: the Python and commands of every page run, every public name and every page can be found."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import afm_fx
from tests.docs.doc_blocks import ROOT, blocks_of, run_blocks

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WITH_CODE = [
    page
    for page in PAGES
    if page.stem != "quickstart" and any(block.not_run is None for block in blocks_of(page.read_text("utf-8")))
]


pytestmark = pytest.mark.xdist_group("docs")  # one process follows the quickstart, for all pages


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of who has followed the quickstart: a checkpoint, rows, a compressed model, a report."""
    for package in ("onnxruntime", "deepctr_torch", "matplotlib", "pygraphviz"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        run_blocks(DOCS / "quickstart.md", patched)
    return folder


def test_the_quickstart_leaves_what_it_says(quickstart: Path) -> None:
    found = {each.name for each in quickstart.iterdir()}
    assert {
        "click_model.pt",
        "clicks.npz",
        "explanation.html",
        "report.html",
        "low_rank.onnx",
        "compression.html",
    } <= found
    assert {each.name for each in (quickstart / "compressed").iterdir()} == {
        "config.json", "dense.onnx", "low_rank.onnx", "plan.safetensors", "report.json",
    }  # fmt: skip


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("click_model.pt", "clicks.npz"):
        shutil.copy(quickstart / name, folder)
    shutil.copytree(quickstart / "compressed", folder / "compressed")
    monkeypatch.chdir(folder)
    assert run_blocks(page, monkeypatch) > 0


def test_a_block_that_is_not_run_says_why() -> None:
    for page in PAGES:
        for block in blocks_of(page.read_text("utf-8")):
            assert block.not_run is None or len(block.not_run) > 10, f"{page.name}:{block.line}"


def test_every_public_name_is_in_the_reference_once() -> None:
    reference = re.findall(
        r"^\.\. auto(?:class|function):: ([\w.]+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE
    )
    public = {name for name in dir(afm_fx) if not isinstance(getattr(afm_fx, name), ModuleType)} - {"__version__"}
    assert len(reference) == len(set(reference))
    assert public - set(reference) == set()


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (DOCS / "index.md").read_text("utf-8")
    listed = {line for tree in re.findall(r"```\{toctree\}\n(.*?)```", contents, re.DOTALL) for line in tree.split()}
    assert {page.stem for page in PAGES} - {"index"} <= listed


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # Sphinx' own affair
def test_the_documentation_is_read_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo", "latex2mathml"):
        pytest.importorskip(package)
    from sphinx.cmd.build import build_main

    options = ["--fail-on-warning", "--keep-going", "--quiet", "-b", "dummy", "-d", str(tmp_path / "doctrees")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", list(sys.path))  # the configuration adds to it
        assert build_main([*options, str(DOCS), str(tmp_path / "out")]) == 0


def test_every_file_that_the_architecture_names_is_there() -> None:
    page = (DOCS / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page))
    assert len(named) > 20
    missing = {name for name in named if not any((ROOT / top / name).exists() for top in ("", "afm_fx"))}
    assert not missing
