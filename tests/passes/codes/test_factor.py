"""Factors: codes, offsets and blocks of rows."""

from __future__ import annotations

import pytest
import torch

from passes.codes import table_codes
from passes.codes.factor import blank_factor, factor_of


def random_factor(width: int, rank: int, *, centred: bool = True):
    decoder = torch.linalg.qr(torch.randn(width, rank, dtype=torch.float64))[0]
    centre = torch.randn(width, dtype=torch.float64) if centred else None
    return factor_of(decoder.mT.contiguous(), decoder, centre), centre


def test_code_and_offset_are_the_projection_about_the_centre() -> None:
    factor, centre = random_factor(7, 3)
    rows = torch.randn(20, 7, dtype=torch.float64)
    projector = factor.decoder @ factor.encoder
    expected = (rows - centre) @ projector.mT + centre
    torch.testing.assert_close(factor.decode(rows @ factor.encoder.mT + factor.shift), expected, rtol=1e-12, atol=1e-12)


def test_norms_can_be_taken_on_codes() -> None:
    factor, _ = random_factor(7, 3)
    codes = torch.randn(20, 3, dtype=torch.float64)
    norms = codes.square().sum(1) + factor.offset.square().sum()
    torch.testing.assert_close(factor.decode(codes).square().sum(1), norms, rtol=1e-12, atol=1e-12)


def test_an_uncentred_factor_keeps_zero_at_zero() -> None:
    factor, _ = random_factor(5, 2, centred=False)
    table = torch.cat([torch.zeros(1, 5), torch.randn(9, 5)])
    assert torch.equal(factor.encode_table(table)[0], torch.zeros(2))
    assert factor.decode(torch.zeros(2, dtype=torch.float64)).abs().max() == 0


@pytest.mark.parametrize("rows", [1, 4, 5, 13])
def test_a_table_is_encoded_alike_in_any_row_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    factor, _ = random_factor(6, 2)
    table = torch.randn(rows, 6)
    whole = factor.encode_table(table)
    monkeypatch.setattr(table_codes, "ROWS_PER_BLOCK", 4)
    assert torch.equal(factor.encode_table(table), whole)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, (table.double() @ factor.encoder.mT + factor.shift).float())


def test_a_table_of_one_row_in_memory_gives_codes_of_one_row_in_memory() -> None:
    factor, _ = random_factor(6, 2)
    row = torch.randn(1, 6)
    codes = factor.encode_table(row.expand(1_000_000, 6))
    assert codes.shape == (1_000_000, 2)
    assert codes.untyped_storage().nbytes() == 8
    assert torch.equal(codes[999_999:], factor.encode_table(row))


def test_a_linear_yields_the_code_of_its_output_with_and_without_bias() -> None:
    factor, _ = random_factor(6, 2)
    weight, bias, inputs = torch.randn(6, 4).double(), torch.randn(6).double(), torch.randn(9, 4).double()
    for given in (bias, None):
        code_weight, code_bias = factor.encode_weight(weight, given)
        outputs = inputs @ weight.mT + (0 if given is None else given)
        torch.testing.assert_close(inputs @ code_weight.mT + code_bias, outputs @ factor.encoder.mT + factor.shift)


def test_sizes() -> None:
    factor = blank_factor(6, 2, centred=True)
    assert (factor.width, factor.rank) == (6, 2)
    assert blank_factor(6, 2, centred=False).offset is None


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_blank_factor_gives_the_shapes_of_a_real_one_and_no_data(centred: bool, has_bias: bool) -> None:
    blank = blank_factor(6, 2, centred=centred)
    basis = torch.eye(6, 2, dtype=torch.float64)
    real = factor_of(basis.mT.contiguous(), basis, torch.ones(6).double() if centred else None)
    table, weight, bias = torch.randn(9, 6), torch.randn(6, 4), torch.randn(6) if has_bias else None
    pairs = [(blank.encode_table(table), real.encode_table(table))]
    pairs += zip(blank.encode_weight(weight, bias), real.encode_weight(weight, bias), strict=True)  # type: ignore[arg-type]
    for without, whole in pairs:
        assert (without is None) == (whole is None)
        if without is not None:
            assert without.is_meta
            assert (without.shape, without.dtype) == (whole.shape, whole.dtype)
