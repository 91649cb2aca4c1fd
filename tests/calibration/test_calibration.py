"""Calibration: the moments of every site, from any batches, and clear words about bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import afm_fx
from afm_fx.calibration.calibration import _part
from afm_fx.errors import BatchError, CalibrationError, FileFormatError, OutputExistsError
from tests.graphs import ROWS, Tower, plain_mlp, tower_batch


@pytest.fixture
def program() -> afm_fx.Program:
    return afm_fx.capture(Tower(), tower_batch(4)).to(torch.float64)


def features_of(program: afm_fx.Program, ids: torch.Tensor, dense: torch.Tensor) -> dict[str, torch.Tensor]:
    """The sites' features, computed from the parameters by hand."""
    parameters = dict(program.graph_module.named_parameters())
    tables = {f"tables.{field}": parameters[f"tables.{field}.weight"][ids[:, field]] for field in range(3)}
    joined = torch.cat([tables["tables.0"], dense.double(), tables["tables.1"], tables["tables.2"]], dim=-1)
    first = joined @ parameters["first.weight"].T + parameters["first.bias"]
    second = first.relu() @ parameters["second.weight"].T + parameters["second.bias"]
    return {**tables, "first": first, "second": second}


def test_moments_equal_numpy_on_the_sites_features_in_any_batching(program: afm_fx.Program) -> None:
    ids, dense = tower_batch(100)
    whole = features_of(program, ids, dense)
    for sizes in ([100], [50, 50], [1, 9, 40, 50], [3] * 33 + [1]):
        batches = list(zip(ids.split(sizes), dense.split(sizes), strict=True))
        statistics = afm_fx.calibrate(program, batches)
        assert statistics.rows == 100
        assert statistics.batches == len(sizes)
        assert statistics.moments.keys() == whole.keys()
        for name, features in whole.items():
            array = features.detach().numpy()
            moments = statistics.moments[name]
            assert moments.count == 100
            np.testing.assert_allclose(moments.mean.numpy(), array.mean(0), rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(moments.covariance.numpy(), np.cov(array.T, bias=True), rtol=1e-10, atol=1e-10)


def test_statistics_of_parts_merge_to_the_whole(program: afm_fx.Program) -> None:
    batches = [tower_batch(20) for _ in range(4)]
    whole = afm_fx.calibrate(program, batches)
    merged = afm_fx.calibrate(program, batches[2:]) + afm_fx.calibrate(program, batches[:2])
    assert (merged.rows, merged.batches) == (80, 4)
    for name, moments in whole.moments.items():
        torch.testing.assert_close(merged.moments[name].covariance, moments.covariance, rtol=1e-10, atol=1e-10)


def test_a_table_of_several_fields_sees_all_their_lookups() -> None:
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(ROWS, 4)
            self.out = torch.nn.Linear(8, 1)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(torch.cat([self.table(ids[:, 0]), self.table(ids[:, 1])], dim=-1))

    ids = torch.randint(0, ROWS, (30, 2))
    model = Shared()
    statistics = afm_fx.calibrate(afm_fx.capture(model, ids), [ids])
    torch.testing.assert_close(statistics.moments["table"].mean, model.table(ids).double().mean((0, 1)).detach())
    assert statistics.moments["table"].count == 60


def test_max_rows_cuts_the_last_batch(program: afm_fx.Program) -> None:
    batches = [tower_batch(20) for _ in range(4)]
    cut = afm_fx.calibrate(program, batches, max_rows=30)
    expected = afm_fx.calibrate(program, [batches[0], tuple(part[:10] for part in batches[1])])
    assert cut.rows == 30
    torch.testing.assert_close(cut.moments["first"].scatter, expected.moments["first"].scatter)
    with pytest.raises(CalibrationError, match="max_rows"):
        afm_fx.calibrate(program, batches, max_rows=0)


def test_a_generator_of_batches_is_enough_and_is_not_read_past_max_rows(program: afm_fx.Program) -> None:
    read = []

    def batches():
        for number in range(10):
            read.append(number)
            yield tower_batch(20)

    assert afm_fx.calibrate(program, batches(), max_rows=40).rows == 40
    assert read == [0, 1]


def test_no_batches_is_an_error(program: afm_fx.Program) -> None:
    with pytest.raises(CalibrationError, match="no calibration batches"):
        afm_fx.calibrate(program, [])


def test_one_tensor_instead_of_batches_is_an_error() -> None:
    program = afm_fx.capture(plain_mlp(), torch.randn(3, 4))
    with pytest.raises(CalibrationError, match="iterable of batches"):
        afm_fx.calibrate(program, torch.randn(10, 4))


def test_a_batch_that_does_not_fit_is_named(program: afm_fx.Program) -> None:
    ids, dense = tower_batch(5)
    with pytest.raises(BatchError, match=r"batch 1: .*'dense' has shape \[5, 1\]"):
        afm_fx.calibrate(program, [(ids, dense), (ids, dense[:, :1])])


def test_an_id_outside_its_table_is_named_with_batch_row_column_and_table(program: afm_fx.Program) -> None:
    ids, dense = tower_batch(5)
    bad = ids.clone()
    bad[3, 1] = 99
    with pytest.raises(
        BatchError, match=r"batch 1, row 3: id 99 of input 'ids', column 1 is outside table 'tables.1' \(ids 0 to 11\)"
    ):
        afm_fx.calibrate(program, [(ids, dense), (bad, dense)])
    bad[3, 1] = -1
    with pytest.raises(BatchError, match="id -1"):
        afm_fx.calibrate(program, [(bad, dense)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_input_is_named_with_its_batch(program: afm_fx.Program, value: float) -> None:
    batches = [tower_batch(5) for _ in range(4)]
    batches[2][1][1, 0] = value
    with pytest.raises(CalibrationError, match=r"batch 2: input 'dense' has the value (nan|inf) at position \[1, 0\]"):
        afm_fx.calibrate(program, batches)


def test_an_overflow_inside_the_model_is_named_with_its_node() -> None:
    class Overflow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(2, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.exp(self.first(x) * 0 + x.sum(1, keepdim=True)))

    program = afm_fx.capture(Overflow(), torch.zeros(3, 2))
    with pytest.raises(CalibrationError, match=r"batch 0: node 'exp' .*inf.*test_calibration.py"):
        afm_fx.calibrate(program, [torch.full((3, 2), 1e3)])


def test_statistics_survive_the_file(program: afm_fx.Program, tmp_path: Path) -> None:
    statistics = afm_fx.calibrate(program, [tower_batch(20)])
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    loaded = afm_fx.Statistics.load(path)
    assert (loaded.rows, loaded.batches, loaded.moments.keys()) == (20, 1, statistics.moments.keys())
    for name, moments in statistics.moments.items():
        assert loaded.moments[name].count == moments.count
        assert torch.equal(loaded.moments[name].scatter, moments.scatter)
    with pytest.raises(OutputExistsError, match="exists already"):
        statistics.save(path)


def test_damaged_statistics_are_refused(program: afm_fx.Program, tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    afm_fx.calibrate(program, [tower_batch(20)]).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="truncated"):
        afm_fx.Statistics.load(path)
    with pytest.raises(FileFormatError, match="no file"):
        afm_fx.Statistics.load(tmp_path / "absent")


def test_statistics_of_different_models_do_not_merge(program: afm_fx.Program) -> None:
    other = afm_fx.capture(plain_mlp(), torch.randn(3, 4))
    with pytest.raises(CalibrationError, match="different models"):
        _ = afm_fx.calibrate(program, [tower_batch(5)]) + afm_fx.calibrate(other, [torch.randn(5, 4)])


def test_the_parts_of_all_processes_add_up_and_differ_by_one_row_at_most() -> None:
    assert [_part(10, rank, 4) for rank in range(4)] == [3, 3, 2, 2]
    assert [_part(2, rank, 4) for rank in range(4)] == [1, 1, 0, 0]
