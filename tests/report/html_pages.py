"""Reads the HTML pages as a strict parser and as a browser do."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

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


def loads_nothing(text: str) -> None:
    """Fails where a page would fetch anything, or leads anywhere but to itself."""
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "image"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "xlink:href", "data", "action", "srcset"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
    assert not re.search(r"https?:|//[a-z]|@import|fetch\(|XMLHttpRequest|import\(|url\((?!#)", text)


def telling_errors(text: str) -> str:
    """The page, with every error of its scripts told in the title."""
    listener = "<script>window.addEventListener('error', (e) => { document.title = 'FAILED ' + e.message; });</script>"
    return text.replace("<head>", f"<head>{listener}")


def in_browser(page: Path, *options: str) -> str:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    done = subprocess.run(  # noqa: S603 - a browser found on PATH, a page of our own
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def screenshots(page: Path) -> list[bytes]:
    """Pictures of a page at a laptop's size, in light and in dark."""
    shots = []
    for dark in (False, True):
        shot = page.parent / f"{dark}.png"
        scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
        in_browser(page, "--window-size=1440,900", f"--screenshot={shot}", *scheme)
        shots.append(shot.read_bytes())
    return shots
