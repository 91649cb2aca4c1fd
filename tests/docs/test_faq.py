"""Every error that the FAQ quotes is what the code says, and every error here is quoted."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.data.data_files import open_data
from afm_fx.data.file_batches import FileBatches
from afm_fx.errors import CalibrationWarning, UserError
from afm_fx.program.user_model import build_model, read_checkpoint
from tests.docs.doc_blocks import ROOT
from tests.graphs import Tower, tower_batch

PAGE = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
QUOTED = {
    heading: " ".join(text.split())
    for heading, text in re.findall(r"^### ([^\n]+)\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE)
}


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x[:1]


class Case:
    """A tower, its program, rows, and an empty working directory."""

    def __init__(self) -> None:
        self.tower = Tower().eval()
        self.program = afm_fx.capture(self.tower, tower_batch(4))
        self.ids, self.dense = tower_batch(50)
        self.statistics = afm_fx.calibrate(self.program, [(self.ids, self.dense)])
        self.plan = afm_fx.make_plan(self.program, self.statistics, afm_fx.Fixed(embedding=2, linear=3))
        self.wider = Tower(hidden=20).eval()

    def id_outside(self) -> None:
        ids = self.ids.clone()
        ids[7, 1] = 99
        afm_fx.calibrate(self.program, [(ids, self.dense)])

    def not_a_number(self) -> None:
        dense = self.dense.clone()
        dense[3, 0] = float("nan")
        afm_fx.calibrate(self.program, [(self.ids, dense)])

    def no_column(self) -> None:
        np.savez("rows.npz", ids=self.ids.numpy(), dens=self.dense.numpy())
        FileBatches(open_data(Path("rows.npz")), self.program)

    def few_rows(self) -> None:
        statistics = afm_fx.calibrate(self.program, [tower_batch(8)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            afm_fx.make_plan(self.program, statistics, afm_fx.Fixed(embedding=None, linear=3))

    def output_exists(self) -> None:
        self.plan.save("plan.safetensors")
        self.plan.save("plan.safetensors")

    def pickled(self) -> None:
        torch.save(self.tower, "whole.pt")
        read_checkpoint(Path("whole.pt"))

    def other_checkpoint(self) -> None:
        torch.save(self.wider.state_dict(), "other.pt")
        build_model("tests.docs.test_faq:factory", Path("other.pt"))

    def damaged(self) -> None:
        self.plan.save("plan.safetensors")
        Path("plan.safetensors").write_bytes(Path("plan.safetensors").read_bytes()[:100])
        afm_fx.Plan.load("plan.safetensors")

    def recover_once(self) -> None:
        afm_fx.recover(self.program, self.program, iter([(self.ids, self.dense)]))

    def without_graphviz(self) -> None:
        pytest.importorskip("jinja2")
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(sys.modules, "pygraphviz", None)
            afm_fx.explain(self.program).to_html("page.html")


def factory() -> tuple[nn.Module, Any]:
    return Tower(), tower_batch(4)


ERRORS: dict[str, Callable[[Case], Any]] = {
    "A model that decides something on values cannot be captured": lambda case: afm_fx.capture(
        Decides(), torch.rand(4, 3)
    ),
    "The example batch has one row": lambda case: afm_fx.capture(case.tower, tower_batch(1)),
    "There is no example batch": lambda case: afm_fx.capture(case.tower),
    "A batch has another shape than the example": lambda case: case.program.run((case.ids[:, :2], case.dense)),
    "Ids came as floats": lambda case: case.program.run((case.ids.float(), case.dense)),
    "An id is outside its table": Case.id_outside,
    "A feature is NaN": Case.not_a_number,
    "Calibration got nothing": lambda case: afm_fx.calibrate(case.program, []),
    "A file has no column for an input": Case.no_column,
    "A site saw few rows": Case.few_rows,
    "The budget cannot be reached": lambda case: afm_fx.make_plan(
        case.program, case.statistics, afm_fx.Budget(parameters=0.05)
    ),
    "A site is named that there is not": lambda case: afm_fx.make_plan(
        case.program, case.statistics, afm_fx.Fixed(overrides={"frist": 2})
    ),
    "The plan is of another checkpoint": lambda case: afm_fx.apply_plan(
        afm_fx.capture(case.wider, tower_batch(4)), case.plan
    ),
    "Recovery wants to go through the batches again": Case.recover_once,
    "The output exists": Case.output_exists,
    "The checkpoint is a pickled model": Case.pickled,
    "The checkpoint is of another model": Case.other_checkpoint,
    "The file is damaged": Case.damaged,
    "The module is not found": lambda case: build_model("shoop:ctr"),
    "A page needs a package": Case.without_graphviz,
}


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    return Case()


def test_every_quoted_error_is_tried_and_every_tried_error_is_quoted() -> None:
    assert QUOTED.keys() == ERRORS.keys()
    assert PAGE.count("```text") == len(ERRORS)


@pytest.mark.parametrize("heading", ERRORS)
def test_the_error_is_told_as_quoted(heading: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, CalibrationWarning)) as raised:
        ERRORS[heading](case)
    said = " ".join(str(raised.value).split())
    assert re.fullmatch(".*".join(map(re.escape, QUOTED[heading].split("…"))), said)
