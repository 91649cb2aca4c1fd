"""The page: complete, self-contained, safe with any name, and alive in a browser."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import afm_fx
from afm_fx.errors import MissingPackageError, OutputExistsError
from afm_fx.report.explanation import Explanation
from tests.graphs import Tower, tower_batch
from tests.report.html_pages import NASTY, Page, in_browser, loads_nothing, screenshots, telling_errors


def page_of(explanation: Explanation, folder: Path, title: str = "A tower") -> str:
    pytest.importorskip("pygraphviz")
    explanation.to_html(folder / "page.html", title=title)
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tower() -> Explanation:
    return afm_fx.explain(Tower(), tower_batch(4))


def test_the_page_holds_every_site_every_reason_and_every_source_line(tower: Explanation, tmp_path: Path) -> None:
    words = Page(page_of(tower, tmp_path)).words
    for chain in tower.chains:
        assert chain.site.name in words
        assert chain.verdict.reason in words
        assert str(chain.verdict.fate) in words
        assert ":".join(chain.verdict.source.split(":")[:2]) in words
    assert "A tower" in words
    assert f"{tower.parameters:,} parameters" in words


def test_the_page_loads_nothing(tower: Explanation, tmp_path: Path) -> None:
    loads_nothing(page_of(tower, tmp_path))


def test_every_mark_leads_to_a_box(tower: Explanation, tmp_path: Path) -> None:
    page = Page(page_of(tower, tmp_path))
    boxes = {each["id"] for _, each in page.tags if "node" in (each.get("class") or "").split()}
    marks = [key for _, each in page.tags if "data-boxes" in each for key in (each["data-boxes"] or "").split()]
    assert marks
    assert set(marks) <= boxes
    uses = [each for _, each in page.tags if "use" in (each.get("class") or "").split()]
    assert all(each["data-boxes"] for each in uses)


def test_names_reasons_and_source_lines_that_are_markup_are_shown_as_they_are(
    tower: Explanation, tmp_path: Path
) -> None:
    document = tower.to_json()
    nasty = json.dumps(NASTY)[1:-1]
    for plain in ("tables.0", "there is nothing to factor", "graphs.py"):
        assert plain in document
        document = document.replace(plain, f"{plain} {nasty}")
    page = Page(page_of(Explanation.from_json(document), tmp_path, title=NASTY))
    for plain in ("tables.0", "there is nothing to factor", "graphs.py"):
        assert f"{plain} {NASTY}" in page.words
    assert any(f"tables.0 {NASTY}\n" in (each.get("xlink:title") or "") for _, each in page.tags)
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 1


def test_the_same_model_gives_the_same_page(tower: Explanation, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    again = afm_fx.explain(Tower(), tower_batch(7))
    assert page_of(tower, first) == page_of(again, second)


def test_what_was_folded_is_told(tower: Explanation, tmp_path: Path) -> None:
    assert "of the graph's operators have nothing to do with features" in Page(page_of(tower, tmp_path)).words


def test_a_model_without_sites_has_a_page_too(tmp_path: Path) -> None:
    words = Page(page_of(afm_fx.explain(nn.ReLU(), torch.rand(3, 2)), tmp_path)).words
    assert "no embedding table and no Linear" in words


def test_a_page_is_replaced_only_by_force(tower: Explanation, tmp_path: Path) -> None:
    page_of(tower, tmp_path)
    with pytest.raises(OutputExistsError):
        tower.to_html(tmp_path / "page.html")
    tower.to_html(tmp_path / "page.html", title="Another", force=True)
    assert "<h1>Another</h1>" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("package", ["pygraphviz", "jinja2"])
def test_without_the_extra_the_error_says_what_to_install(
    tower: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'afm-fx\[report\]'"):
        tower.to_html(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_browser_runs_the_page_and_marks_what_is_picked(tower: Explanation, tmp_path: Path) -> None:
    text = page_of(tower, tmp_path)
    key = re.search(r'id="(b\d+)" class="node linear absorbed verdict"', text)
    assert key is not None
    click = f"<script>document.getElementById('{key[1]}').dispatchEvent(new MouseEvent('click'));</script>"
    page = tmp_path / "picked.html"
    page.write_text(telling_errors(text).replace("</body>", f"{click}</body>"), encoding="utf-8")
    document = in_browser(page, "--dump-dom")
    assert "FAILED" not in document.partition("<body>")[0].rpartition("<title>")[2]
    assert re.search(r'<svg[^>]* class="picked"', document)
    assert re.search(rf'id="{key[1]}" class="node linear absorbed verdict chosen near" aria-label="first\.', document)
    assert re.search(r'class="use pick absorbed chosen"', document)
    assert re.search(r'class="use pick refused"', document)


def test_a_browser_draws_it_in_light_and_in_dark(tower: Explanation, tmp_path: Path) -> None:
    page_of(tower, tmp_path)
    shots = screenshots(tmp_path / "page.html")
    assert all(shot.startswith(b"\x89PNG") and len(shot) > 20_000 for shot in shots)  # a blank page takes some 5,000
    assert shots[0] != shots[1]
