"""Packing every model of the zoo: the same outputs, fewer operators, exportable."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

import afm_fx
from afm_fx.program.change import Change
from afm_fx.runtime.packing import PackReport, pack
from tests.zoo.entry import ZooEntry
from tests.zoo.models import captured, zoo_params
from tests.zoo.test_zoo_rewrite import FRESH_SEED, assert_batch_is_symbolic, budgeted

SHAPED_SUMS = 1
"""A sum that became a product, which is faster, may need one operator more for its shape."""


@functools.cache
def packed_dense(name: str) -> Change[PackReport]:
    """The model packed in float64, once for all tests of it."""
    return pack(captured(name)[1].to(torch.float64))


@functools.cache
def packed_low_rank(name: str) -> Change[PackReport]:
    """The model under its budget packed in float64, once for all tests of it."""
    return pack(budgeted(name)[1].to(torch.float64))


def assert_same_outputs(entry: ZooEntry, one: afm_fx.Program, other: afm_fx.Program) -> None:
    for rows in (2, 9, 33):
        inputs = entry.inputs(rows, FRESH_SEED)
        expected, found = one.run(inputs), other.run(inputs)
        assert pytree.tree_structure(found) == pytree.tree_structure(expected)
        for left, right in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entry", zoo_params())
def test_packing_changes_nothing_but_the_form(entry: ZooEntry) -> None:
    program = captured(entry.name)[1].to(torch.float64)
    packed = packed_dense(entry.name)
    assert_same_outputs(entry, program, packed.program)
    assert_batch_is_symbolic(packed.program)
    assert packed.report.after.operators <= packed.report.before.operators + SHAPED_SUMS
    assert pack(packed.program).report.after.operators == packed.report.after.operators


def test_a_packed_program_can_be_fine_tuned() -> None:
    entry = next(param.values[0] for param in zoo_params() if param.values[0].name == "DeepFM")
    program = packed_dense(entry.name).program
    args, kwargs = program.bind(entry.inputs(9, FRESH_SEED))
    program(*args, **kwargs).sum().backward()
    assert all(parameter.grad is not None for parameter in program.parameters() if parameter.requires_grad)
    assert sum(parameter.requires_grad for parameter in program.parameters()) > 4


@pytest.mark.parametrize("entry", zoo_params())
def test_packing_a_compressed_program_changes_nothing_but_the_form(entry: ZooEntry) -> None:
    program = budgeted(entry.name)[1].to(torch.float64)
    packed = packed_low_rank(entry.name)
    assert_same_outputs(entry, program, packed.program)
    assert packed.report.after.operators <= packed.report.before.operators + SHAPED_SUMS


@pytest.mark.parametrize("entry", zoo_params())
def test_packed_programs_export_and_onnx_runtime_agrees(entry: ZooEntry, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for kind, packed in (("dense", packed_dense(entry.name)), ("low_rank", packed_low_rank(entry.name))):
        report = afm_fx.export_onnx(packed.program.to(torch.float32), tmp_path / f"{kind}.onnx")
        assert report.max_abs_difference is not None
        assert report.max_abs_difference <= 1e-5
        assert not {name for name, _ in report.operators} & {"Loop", "If", "SequenceAt", "SplitToSequence"}


@pytest.mark.parametrize(
    ("name", "most"),
    [("DeepFM", 22), ("DCN-vector", 29), ("WDL", 18), ("PNN-inner", 18), ("ESMM", 21), ("NFM", 24), ("MLR", 27)],
)
def test_all_lookups_of_a_model_end_as_one_gather(name: str, most: int) -> None:
    report = packed_dense(name).report
    assert report.after.lookups == 1
    assert report.after.operators <= most
