"""The pass, whole: capture, calibrate, plan, apply."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn
from torch.export import ExportedProgram

from afm_fx.calibration import Statistics, calibrate
from afm_fx.data import HoldOut, peek
from afm_fx.errors import CalibrationError
from afm_fx.planning import (
    MEASURED_ROWS,
    SENSITIVITY_ROWS,
    BasisKind,
    Plan,
    Policy,
    apply_plan,
    make_plan,
    require_policy,
)
from afm_fx.program import InputKind, Inputs, Program, capture, split_inputs
from afm_fx.report import CompressionReport
from afm_fx.runtime import PackReport, pack as pack_program

_WITHOUT_GRADIENTS = (BasisKind.AFM, BasisKind.WEIGHT_SVD)


@dataclass(frozen=True)
class Compressed:
    """A compressed model.

    Attributes:
        program: the low-rank program, packed for serving unless that was left out.
        packing: what packing did, None where it was left out.
    """

    original: Program
    program: Program
    statistics: Statistics
    plan: Plan
    report: CompressionReport
    packing: PackReport | None = None


def compress(
    model: nn.Module | ExportedProgram | Program,
    calibration_batches: Iterable[Inputs],
    policy: Policy,
    example_inputs: Inputs | None = None,
    *,
    basis: str | BasisKind = BasisKind.MEASURED,
    max_rows: int | None = None,
    pack: bool = True,
    inputs: str | InputKind = InputKind.ORIGINAL,
    statistics: Statistics | None = None,
) -> Compressed:
    """Compresses a trained model.

    Args:
        model: a module, an exported program or a captured program; it is left as it is.
        calibration_batches: batches of what the model takes (no labels), a few thousand rows or more.
        policy: picks the ranks: ``Budget``, ``Energy``, ``Fixed`` or ``FullRank``.
        example_inputs: one batch of at least 2 rows to capture with; the first calibration batch if left out.
        basis: see :func:`afm_fx.make_plan`. For "measured", one row of five is kept back, 4,096 at most, to measure
            logit errors on, and gradients are taken on 32,768 of the others.
        max_rows: calibrate on so many rows at most.
        pack: pack the low-rank program for serving (:func:`afm_fx.pack`), which changes its form and not its outputs.
        inputs: "original", or "typed": the low-rank program takes ids and features apart (:func:`afm_fx.split_inputs`),
            packed or not. Calibration batches are the original's either way.
        statistics: of this model, from an earlier :func:`afm_fx.calibrate`; calibration is left out then, and of the
            batches only the rows that logit errors are measured on are read. Measured plans need statistics with
            ``sensitivity_rows``. ``max_rows`` has no meaning then.

    Raises:
        UserError: its subclasses say what is wrong with the model, the batches or the policy.
    """
    require_policy(policy)
    inputs = InputKind(inputs)
    batches = calibration_batches
    if isinstance(model, Program):
        program = model
    else:
        if example_inputs is None and not isinstance(model, ExportedProgram):
            example_inputs, batches = peek(calibration_batches)
        program = capture(model, example_inputs)
    statistics, plan = _planned(
        program, batches, policy, basis=BasisKind(basis), statistics=statistics, max_rows=max_rows
    )
    low_rank = apply_plan(program, plan)
    report = CompressionReport(program, statistics, plan, low_rank.parameter_count(), low_rank.state_bytes())
    return serving_form(Compressed(program, low_rank, statistics, plan, report), pack=pack, inputs=inputs)


def serving_form(compressed: Compressed, *, pack: bool, inputs: InputKind) -> Compressed:
    """A compressed model as it is served: packed where asked for, with the inputs asked for; see :func:`compress`."""
    if pack:
        packed = pack_program(compressed.program, inputs=inputs)
        return replace(compressed, program=packed.program, packing=packed.report)
    return replace(compressed, program=split_inputs(compressed.program)) if inputs is InputKind.TYPED else compressed


def _planned(
    program: Program,
    batches: Iterable[Inputs],
    policy: Policy,
    *,
    basis: BasisKind,
    statistics: Statistics | None,
    max_rows: int | None,
) -> tuple[Statistics, Plan]:
    """The statistics, collected where there are none, and the plan; a measured one keeps some rows back."""
    measured = basis is BasisKind.MEASURED and policy.measures
    rest = HoldOut(program, batches, MEASURED_ROWS)
    if statistics is None:
        gradients = SENSITIVITY_ROWS if policy.measures and basis not in _WITHOUT_GRADIENTS else 0
        rows = rest if measured else batches
        statistics = calibrate(program, rows, max_rows=max_rows, sensitivity_rows=gradients)
    elif measured and not statistics.sensitivities:
        raise CalibrationError(
            "these statistics were collected without gradients, which a measured plan needs: calibrate with "
            f"sensitivity_rows={SENSITIVITY_ROWS}, or choose basis 'afm'"
        )
    held_out = rest.some_rows() if measured else None
    return statistics, make_plan(program, statistics, policy, basis=basis, held_out=held_out)
