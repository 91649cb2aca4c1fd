"""The page: complete, self-contained, safe with any name, and alive in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import afm_fx
from afm_fx.errors import MissingPackageError, OutputExistsError
from afm_fx.explanation import Explanation
from tests.graphs import Tower, tower_batch

NASTY = "<b>&\"x'{{ 7 * 7 }}</script>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


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
    text = page_of(tower, tmp_path)
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "image", "use"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "data", "action", "srcset"} & set(attributes), tag
    assert not re.search(r"https?:|//[a-z]|@import|fetch\(|XMLHttpRequest|import\(|url\((?!#)", text)


def test_every_arrow_and_every_mark_leads_to_a_box(tower: Explanation, tmp_path: Path) -> None:
    page = Page(page_of(tower, tmp_path))
    boxes = {each["id"] for _, each in page.tags if "box" in (each.get("class") or "").split()}
    arrows = [each for _, each in page.tags if "data-source" in each]
    assert arrows
    assert {each[end] for each in arrows for end in ("data-source", "data-target")} <= boxes
    marks = [key for _, each in page.tags if "data-boxes" in each for key in (each["data-boxes"] or "").split()]
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
    assert any(NASTY in (each.get("aria-label") or "") for _, each in page.tags)
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


def in_browser(page: Path, *options: str) -> str:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    done = subprocess.run(  # noqa: S603 - a browser found on PATH, a page of our own
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_a_browser_runs_the_page_and_marks_what_is_picked(tower: Explanation, tmp_path: Path) -> None:
    text = page_of(tower, tmp_path)
    key = re.search(r'class="box linear absorbed" id="(b\d+)"', text)
    assert key is not None
    errors = "<script>window.addEventListener('error', (e) => { document.title = 'FAILED ' + e.message; });</script>"
    click = f"<script>document.getElementById('{key[1]}').dispatchEvent(new MouseEvent('click'));</script>"
    page = tmp_path / "picked.html"
    page.write_text(text.replace("<head>", f"<head>{errors}").replace("</body>", f"{click}</body>"), encoding="utf-8")
    document = in_browser(page, "--dump-dom")
    assert "FAILED" not in document.partition("<body>")[0].rpartition("<title>")[2]
    assert re.search(
        r'<g id="stage" transform="translate\([-\d.]+,[-\d.]+\) scale\([\d.]+\)" class="picked">', document
    )
    assert re.search(rf'class="box linear absorbed chosen near" id="{key[1]}"', document)
    assert re.search(r'class="use pick absorbed chosen"', document)
    assert re.search(r'class="use pick refused"', document)


def test_a_browser_draws_it_in_light_and_in_dark(tower: Explanation, tmp_path: Path) -> None:
    page_of(tower, tmp_path)
    shots = []
    for dark in (False, True):
        shot = tmp_path / f"{dark}.png"
        scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
        in_browser(tmp_path / "page.html", "--window-size=1440,900", f"--screenshot={shot}", *scheme)
        shots.append(shot.read_bytes())
    assert all(shot.startswith(b"\x89PNG") and len(shot) > 20_000 for shot in shots)  # a blank page takes some 5,000
    assert shots[0] != shots[1]
