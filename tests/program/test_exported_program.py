"""An ``ExportedProgram`` in, an ``ExportedProgram`` out."""

from __future__ import annotations

import pytest
import torch

import afm_fx
from tests.graphs import Tower, tower_batch
from tests.wide_and_deep import rows_of_ids, wide_and_deep


@pytest.fixture(scope="module")
def low_rank() -> afm_fx.Program:
    torch.manual_seed(3)
    batch = torch.export.Dim("batch", min=2)
    shapes = ({0: batch}, {0: batch})
    given = torch.export.export(Tower().eval(), tower_batch(5), dynamic_shapes=shapes)
    return afm_fx.compress(given, [tower_batch(300)], afm_fx.Fixed(embedding=2, linear=4)).program


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_it_computes_the_same_at_any_batch_size(low_rank: afm_fx.Program, rows: int) -> None:
    batch = tower_batch(rows)
    found = afm_fx.to_exported_program(low_rank).module()(*batch)
    assert torch.equal(found, low_rank.run(batch))


def test_it_holds_the_programs_own_parameters(low_rank: afm_fx.Program) -> None:
    exported = afm_fx.to_exported_program(low_rank)
    parameters = dict(low_rank.graph_module.named_parameters())
    assert exported.state_dict.keys() >= parameters.keys()
    for name, parameter in parameters.items():
        assert exported.state_dict[name].data_ptr() == parameter.data_ptr()


def test_it_is_captured_again(low_rank: afm_fx.Program) -> None:
    again = afm_fx.capture(afm_fx.to_exported_program(low_rank))
    batch = tower_batch(9)
    assert torch.equal(again.run(batch), low_rank.run(batch))
    assert again.parameter_count() == low_rank.parameter_count()
    assert again.dynamic_batch


def test_a_float64_program_exports_in_float64() -> None:
    program = wide_and_deep()
    found = afm_fx.to_exported_program(program).module()(rows_of_ids(6))
    assert found.dtype == torch.float64
    assert torch.equal(found, program.run(rows_of_ids(6)))


def test_what_torch_refuses_is_told(low_rank: afm_fx.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(afm_fx.errors.ExportError, match="torch cannot export this program: RuntimeError: no such luck"):
        afm_fx.to_exported_program(low_rank)
