"""The README's Python and its commands are those of the quickstart, which is run, and of the script in examples/."""

from __future__ import annotations

import re

from tests.doc_blocks import ROOT, blocks_of, commands_of

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


def test_every_link_into_the_tree_leads_to_a_file() -> None:
    links = re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
