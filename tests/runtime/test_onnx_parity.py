from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afm_fx.errors import ExportError
from afm_fx.program.capture import capture
from afm_fx.program.program import Program
from afm_fx.runtime.onnx_export import export_onnx
from afm_fx.runtime.onnx_parity import check_file, check_parity, parity_rows


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((3,), factor, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def scale(factor: float, dtype: torch.dtype = torch.float32) -> Program:
    return capture(Scale(factor).to(dtype), torch.zeros(2, 3, dtype=dtype))


def exported(program: Program, directory: Path) -> Path:
    return export_onnx(program, directory / "model.onnx", check=False).path


def test_the_largest_absolute_difference_is_returned(tmp_path: Path) -> None:
    path = exported(scale(1.0), tmp_path)
    program = scale(1.0 + 1e-3)
    measured = check_parity(program, path, tolerance=1.0)
    assert 1e-3 < measured < 1e-2  # |x| of the largest of some hundred normal values, times 1e-3


def test_agreement_is_exact_for_the_same_arithmetic(tmp_path: Path) -> None:
    program = scale(0.3)
    assert check_parity(program, exported(program, tmp_path)) == 0.0


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_a_difference_beyond_the_tolerance_of_the_dtype_is_refused(
    dtype: torch.dtype, error: float, tmp_path: Path
) -> None:
    path = exported(scale(1.0, dtype), tmp_path)
    with pytest.raises(ExportError, match="'output' at batch 2 differs from torch"):
        check_parity(scale(1.0 + error, dtype), path)


def test_the_tolerance_is_relative_to_large_outputs(tmp_path: Path) -> None:
    path = exported(scale(1e6), tmp_path)
    assert check_parity(scale(1e6 + 1), path, tolerance=1e-5) > 1e-2


def test_another_output_shape_or_dtype_is_refused(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1)

    path = exported(capture(Sum(), torch.zeros(2, 3)), tmp_path)
    with pytest.raises(ExportError, match=r"torch.float32 \[2\] in the file, torch.float32 \[2, 3\] in torch"):
        check_parity(scale(1.0), path)


def test_outputs_that_are_nan_everywhere_prove_nothing(tmp_path: Path) -> None:
    program = scale(float("nan"))
    with pytest.raises(ExportError, match="nowhere finite"):
        check_parity(program, exported(program, tmp_path))


def test_infinite_and_nan_outputs_agree_only_with_their_like(tmp_path: Path) -> None:
    class Logarithm(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(shift))

        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x + self.shift)

    program = capture(Logarithm(0.0), torch.zeros(2, 3))  # normal inputs: about half of the outputs are NaN
    path = exported(program, tmp_path)
    assert check_parity(program, path) < 1e-5
    with pytest.raises(ExportError, match="differs from torch by inf"):
        check_parity(capture(Logarithm(-1e-1), torch.zeros(2, 3)), path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = exported(scale(1.0), tmp_path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ExportError, match=r"onnx\.checker refuses"):
        check_file(path)
    with pytest.raises(ExportError, match="ONNX Runtime refuses"):
        check_parity(scale(1.0), path)


def test_a_program_with_a_fixed_batch_is_checked_at_that_batch() -> None:
    assert parity_rows(capture(Scale(1.0).float(), torch.zeros(5, 3), dynamic_batch=False)) == (5,)


def test_a_model_that_draws_random_numbers_is_told_so(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x + torch.randn_like(x))

    program = capture(Noisy().eval(), torch.randn(3, 4))
    said = (
        r"draws random numbers while it serves \(aten\.randn_like\.default, at .*test_onnx_parity\.py:\d+.*randn_like"
    )
    with pytest.raises(ExportError, match=said):
        export_onnx(program, tmp_path / "noisy.onnx")
    assert list(tmp_path.iterdir()) == []
