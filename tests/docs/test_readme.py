"""The README's Python and commands are those of the quickstart, which is run; its table and picture are a record's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import front_page
from tests.docs.doc_blocks import ROOT, blocks_of, commands_of

README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = blocks_of((ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8"))


def blocks(language: str) -> list[str]:
    found = [block for block in blocks_of(README) if block.language == language]
    assert all(block.not_run is None for block in found)
    return [block.text for block in found]


def test_the_python_is_the_quickstarts_which_a_test_runs() -> None:
    run = [block.text for block in QUICKSTART if block.language == "python" and block.not_run is None]
    assert blocks("python")
    assert set(blocks("python")) <= set(run)


def test_the_script_in_examples_is_the_readmes_python() -> None:
    _, _, script = (ROOT / "examples" / "compress_your_model.py").read_text(encoding="utf-8").split('"""', 2)
    assert [script.strip()] == [block.strip() for block in blocks("python")]


def test_the_commands_are_the_quickstarts_which_a_test_runs() -> None:
    run = [words for block in QUICKSTART if block.not_run is None for words in commands_of(block)]
    given = [words for block in blocks_of(README) if block.language == "console" for words in commands_of(block)]
    assert [words[:2] for words in given] == [["afm-fx", name] for name in ("explain", "compress", "bench")]
    for words in given:
        assert any(words[:2] == each[:2] and set(words) <= set(each) for each in run), words


def test_every_link_into_the_tree_leads_to_a_file_and_a_heading() -> None:
    links = re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README)
    assert links
    for path, _, heading in (link.partition("#") for link in links):
        assert (ROOT / path).exists(), path
        if heading:
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {each.lower().replace(" ", "-") for each in headings}, heading


def test_the_page_is_short_and_its_python_comes_early() -> None:
    assert len(README.splitlines()) <= 180
    first = README.index("```python\n")
    assert README.count("\n", 0, README.index("\n```\n", first)) < 60


@pytest.mark.parametrize("page", front_page.PAGES, ids=lambda page: page.stem)
def test_the_table_is_that_of_the_record(page: Path) -> None:
    written = page.read_text(encoding="utf-8")
    assert front_page.with_table(written, front_page.Record.load(), front_page.PAGES[page]) == written


@pytest.mark.parametrize("theme", front_page.PICTURES)
def test_the_picture_is_that_of_the_record(theme: str) -> None:
    path = front_page.PICTURES[theme]
    assert front_page.drawn(front_page.Record.load(), theme) == path.read_text(encoding="utf-8")
    assert str(path.relative_to(ROOT)) in README


def test_the_picture_draws_all_weights_to_one_scale() -> None:
    record = front_page.Record.load()
    for side in ("before", "after"):
        counted = sum(rows * columns for rows, columns in record.weights[side].values())
        drawn = sum(each.rows * each.columns for each in front_page.weights(record.weights[side]))
        assert 0.98 * counted < drawn <= counted  # decoders of tables and matrices of one column are not drawn
    table, layer = (
        next(each for each in front_page.weights(record.weights["before"]) if each.kind == kind)
        for kind in ("table", "layer")
    )
    areas = [
        float(width) * float(height)
        for width, height, _ in re.findall(
            r'width="([\d.]+)" height="([\d.]+)" fill="(\S+)"', front_page.drawn(record, "light")
        )
    ]
    of_table, of_layer = areas[0], areas[26]  # the layers come after 26 tables
    assert of_layer / of_table == pytest.approx(layer.rows * layer.columns / (table.rows * table.columns), rel=0.01)
