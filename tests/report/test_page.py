"""The report's page: complete, self-contained, safe with any name, the same again, and alive in a browser."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import afm_fx
from afm_fx.errors import MissingPackageError, OutputExistsError
from afm_fx.recovery.recovery_report import RecoveryEpoch, RecoveryReport, RecoverySettings
from afm_fx.runtime.reduced_precision import PrecisionReport
from tests.graphs import Tower, tower_batch
from tests.report.html_pages import NASTY, Page, in_browser, loads_nothing, screenshots, telling_errors

pytest.importorskip("pygraphviz")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def compressed() -> afm_fx.Compressed:
    torch.manual_seed(3)
    policy = afm_fx.Fixed(embedding=2, linear=3, overrides={"second": None})
    return afm_fx.compress(Tower().eval(), [tower_batch(400)], policy)


@pytest.fixture(scope="module")
def facts(compressed: afm_fx.Compressed) -> afm_fx.report.ReportFacts:
    torch.manual_seed(4)
    inputs, labels = tower_batch(200), torch.arange(200) % 2
    programs = {"original": compressed.original, "low-rank": compressed.program}
    return afm_fx.report.ReportFacts(
        timing=afm_fx.benchmark(programs, inputs, batch_sizes=(1, 8), seconds=0.001, rounds=2),
        quality=afm_fx.compare_quality(compressed.original, compressed.program, [(inputs, labels)]),
        packing=compressed.packing,
        recovery=RecoveryReport(
            epochs=(RecoveryEpoch(0, None, 0.2345, None, 0.0), RecoveryEpoch(1, 0.5, 0.1234, 0.6789, 1.0)),
            best=1,
            trained=("first",),
            parameters_trained=11,
            held_out_rows=64,
            settings=RecoverySettings(1, 1e-3, None, "factors", 0.2, None, 0),
        ),
        precision=PrecisionReport(1_000, 400, (("tables.0", "int8"),), (), None),
        command="afm-fx compress shop:ctr",
    )


def written(
    report: afm_fx.report.CompressionReport, folder: Path, facts: afm_fx.report.ReportFacts | None = None
) -> str:
    report.to_html(folder / "report.html", title="A tower", facts=facts)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_tells_sizes_ranks_reasons_and_measurements(
    compressed: afm_fx.Compressed, facts: afm_fx.report.ReportFacts, tmp_path: Path
) -> None:
    report, text = compressed.report, written(compressed.report, tmp_path, facts)
    words = Page(text).words
    for site in report.plan.sites:
        assert site.name in words
        assert (f"rank {site.rank} of {site.width}" in words) == (site.rank is not None)
    assert "left alone by override" in words
    assert "one feature wide, there is nothing to factor" in words
    assert f"{report.parameters_before:,}" in words
    assert f"{report.parameters_after:,}" in words
    assert compressed.plan.logit_error is not None
    assert f"{compressed.plan.logit_error:.3g}" in words
    assert facts.quality is not None
    assert facts.timing is not None
    assert f"{facts.quality.tasks[0].auc_after:.4f}" in words
    assert f"{facts.timing.timing('low-rank', 8).p50_us:,.0f}" in words
    assert "0.123 root mean square, held-out rows, recovered" in words
    assert "1 0.50000 0.12340 0.67890 kept" in words
    assert "bytes, tables in fewer bits 1,000 400 2.50x" in words
    assert "afm-fx compress shop:ctr" in words
    assert compressed.plan.digest in words
    assert f"torch {torch.__version__}" in words
    assert len(re.findall('<svg class="plot"', text)) == len(report.plan.sites) + 1


def test_what_was_not_measured_is_said(compressed: afm_fx.Compressed, tmp_path: Path) -> None:
    words = Page(written(compressed.report, tmp_path)).words
    assert "Not measured." in words
    assert "AUC and LogLoss were not measured" in words


def test_the_page_loads_nothing(
    compressed: afm_fx.Compressed, facts: afm_fx.report.ReportFacts, tmp_path: Path
) -> None:
    loads_nothing(written(compressed.report, tmp_path, facts))


def test_the_same_compression_gives_the_same_page_and_its_plots_follow_the_colours(
    compressed: afm_fx.Compressed, tmp_path: Path
) -> None:
    first = written(compressed.report, tmp_path / "first")
    assert first == written(compressed.report, tmp_path / "second")
    plots = re.findall(r'<svg class="plot".*?</svg>', first, re.DOTALL)
    assert plots
    for plot in plots:
        assert "var(--on-codes)" in plot or "as it is" in plot
        assert not re.search(r"#[0-9a-f]{6}\b", plot), "a colour that dark mode would not change"
        assert ">100%<" in plot, "text is text"


def test_names_that_are_markup_are_shown_as_they_are(
    compressed: afm_fx.Compressed, facts: afm_fx.report.ReportFacts, tmp_path: Path
) -> None:
    plan, timing = compressed.plan, facts.timing
    assert timing is not None
    sites = tuple(
        replace(site, reason=f"why {NASTY}") if site.rank is None else replace(site, name=site.name, basis=NASTY)
        for site in plan.sites
    )
    named = tuple(
        replace(each, contender=f"$x$ {NASTY}") if each.contender == "low-rank" else each for each in timing.timings
    )
    refused = {f"refused {NASTY}": NASTY}
    nasty = replace(compressed.report, plan=replace(plan, sites=sites, warnings=(f"warned {NASTY}",), refused=refused))
    nasty.to_html(
        tmp_path / "nasty.html",
        title=NASTY,
        facts=replace(facts, command=f"command {NASTY}", timing=replace(timing, timings=named)),
    )
    page = Page((tmp_path / "nasty.html").read_text(encoding="utf-8"))
    for plain in ("why", "warned", "refused", "command", "$x$"):
        assert f"{plain} {NASTY}" in page.words
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_the_json_has_the_numbers_of_the_plan(compressed: afm_fx.Compressed) -> None:
    document = json.loads(compressed.report.to_json())
    assert document["parameters_after"] == compressed.report.parameters_after
    assert [site["rank"] for site in document["sites"]] == [site.rank for site in compressed.plan.sites]
    assert document["policy"] == compressed.plan.policy


def test_an_existing_file_is_kept_unless_forced(compressed: afm_fx.Compressed, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(OutputExistsError):
        compressed.report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize("package", ["jinja2", "matplotlib.figure", "pygraphviz"])
def test_without_the_extra_the_error_says_what_to_install(
    compressed: afm_fx.Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'afm-fx\[report\]'"):
        compressed.report.to_html(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_browser_draws_it_without_errors_in_light_and_in_dark(
    compressed: afm_fx.Compressed, facts: afm_fx.report.ReportFacts, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.write_text(telling_errors(written(compressed.report, tmp_path / "made", facts)), encoding="utf-8")
    document = in_browser(page, "--dump-dom", "--window-size=1440,900")
    assert "FAILED" not in document.partition("<body>")[0].rpartition("<title>")[2]
    assert re.search(r'<svg[^>]* style="max-width: none; width: [\d.]+px; height: [\d.]+px;"', document)
    shots = screenshots(page)
    assert all(shot.startswith(b"\x89PNG") and len(shot) > 20_000 for shot in shots)  # a blank page takes some 5,000
    assert shots[0] != shots[1]
