"""Rows of factored tables that keep their features: the table shrinks, those rows are what they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import afm_fx
from passes.errors import TableIndexError
from passes.factor import Factor, factor_of
from passes.keep_rows import KeepRows
from passes.sink_codes import SinkCodes
from tests.graphs import ROWS, WIDTH, Tower, tower_batch

KEPT = torch.tensor([7, 2, 5])


def factors() -> dict[str, Factor]:
    decoder = torch.linalg.qr(torch.randn(WIDTH, 2, dtype=torch.float64)).Q
    return {"tables.0": factor_of(decoder.mT, decoder, torch.randn(WIDTH, dtype=torch.float64))}


@pytest.fixture(scope="module")
def model() -> Tower:
    torch.manual_seed(4)
    return Tower().double().eval()


@pytest.fixture(scope="module")
def captured(model: Tower) -> afm_fx.Program:
    ids, dense = tower_batch(5)
    return afm_fx.capture(model, (ids, dense.double()))


def clone(program: afm_fx.Program) -> GraphModule:
    return program.clone().graph_module


def batch_of(row: int) -> tuple[Tensor, Tensor]:
    ids, dense = tower_batch(4)
    ids[:, 0] = row
    return ids, dense.double()


def test_kept_rows_are_exact_and_the_others_are_what_their_codes_say(model: Tower, captured: afm_fx.Program) -> None:
    given = factors()
    module = clone(captured)
    KeepRows({"tables.0": KEPT}, given)(module)
    SinkCodes(given)(module)
    coded = copy.deepcopy(model)
    table, factor = coded.looked_up()[0].weight, given["tables.0"]
    with torch.no_grad():
        table.copy_(factor.decode(factor.encode_table(table)))
    for row in range(ROWS):
        batch = batch_of(row)
        expected = model(*batch) if row in KEPT.tolist() else coded(*batch)
        torch.testing.assert_close(module(*batch), expected, rtol=1e-12, atol=1e-12)
    assert "tables.0.weight" not in dict(module.named_parameters())
    assert module.get_parameter("tables.0.kept.weight").shape == (len(KEPT) + 1, WIDTH)


def test_a_second_run_changes_nothing(captured: afm_fx.Program) -> None:
    given, module = factors(), clone(captured)
    assert KeepRows({"tables.0": KEPT}, given)(module).modified
    assert not KeepRows({"tables.0": KEPT}, given)(module).modified
    assert not KeepRows({"tables.0": KEPT[:0]}, given)(clone(captured)).modified


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("tables.9", KEPT, "no table 'tables.9'"),
        ("first", KEPT, "is a Linear"),
        ("tables.1", KEPT, "no factor"),
        ("tables.0", torch.tensor([ROWS]), f"ids from 0 to {ROWS - 1}"),
        ("tables.0", torch.tensor([3, 3]), "each once"),
    ],
)
def test_what_cannot_be_kept_is_refused(captured: afm_fx.Program, name: str, rows: Tensor, message: str) -> None:
    with pytest.raises(TableIndexError, match=message):
        KeepRows({name: rows}, factors())(clone(captured))
