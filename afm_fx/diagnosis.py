"""Says what is wrong with a batch that made a program fail: which input, which id, which node.

Slow and thorough: it runs node by node, and only after something failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from afm_fx.batches import Batch, flat_inputs
from afm_fx.errors import AfmFxError, BatchError, CalibrationError
from afm_fx.program import Program
from passes.graph_tools import aten
from passes.sink_codes import source_line
from passes.sites import site_name


class _FoundError(Exception):
    """Carries a finding out of the interpreter."""

    def __init__(self, error: AfmFxError) -> None:
        super().__init__(str(error))
        self.error = error


class _Watch(Interpreter):
    """Runs a program node by node and stops at the first id outside its table or the first non-finite value."""

    def __init__(self, program: Program, batch: Batch, *, check_finite: bool) -> None:
        super().__init__(program.graph_module)
        self._batch = batch
        self._check_finite = check_finite

    def run_node(self, n: Node) -> Any:
        if n.target is aten.embedding.default:
            table, ids = (self.env[argument] for argument in n.args[:2])  # type: ignore[index]
            self._check_ids(n, table, ids)
        result = super().run_node(n)
        if self._check_finite and isinstance(result, Tensor) and result.is_floating_point():
            bad = ~result.isfinite()
            if bad.any():
                raise _FoundError(CalibrationError(self._non_finite(n, result, bad)))
        return result

    def _check_ids(self, node: Node, table: Tensor, ids: Tensor) -> None:
        outside = (ids < 0) | (ids >= table.shape[0])
        if not outside.any():
            return
        position = outside.nonzero()[0].tolist()
        name = site_name(str(node.args[0].target)) if isinstance(node.args[0], Node) else node.name
        raise _FoundError(
            BatchError(
                f"batch {self._batch.number}, row {position[0]}: id {int(ids[tuple(position)])} of {_field(node)} "
                f"is outside table '{name}' with {table.shape[0]:,} rows (ids 0 to {table.shape[0] - 1:,})"
            )
        )

    def _non_finite(self, node: Node, result: Tensor, bad: Tensor) -> str:
        position = bad.nonzero()[0].tolist()
        value = float(result[tuple(position)])
        what = f"input '{node.name}'" if node.op == "placeholder" else f"node '{node.name}' ({node.target})"
        place = source_line(node)
        return (
            f"batch {self._batch.number}: {what} has the value {value} at position {position}"
            f"{', at ' + place if place else ''}; calibration needs finite features"
        )


def _field(node: Node) -> str:
    """The input that an id came from: its name, with the column where it was sliced from a matrix."""
    column = ""
    current: Any = node.args[1]
    while isinstance(current, Node) and current.op != "placeholder":
        if current.target is aten.slice.Tensor and len(current.args) > 2 and current.args[1] != 0 and not column:
            column = f", column {current.args[2]}"
        if current.target is aten.select.int and current.args[1] != 0 and not column:
            column = f", column {current.args[2]}"
        current = current.all_input_nodes[0] if current.all_input_nodes else None
    return f"input '{current.name}'{column}" if isinstance(current, Node) else f"node '{node.name}'"


def explain_failed_batch(program: Program, batch: Batch, error: Exception) -> AfmFxError:
    """The typed error for a batch on which the program raised."""
    found = _watch(program, batch, check_finite=False)
    if found is not None:
        return found
    reason = str(error).strip().splitlines()
    return BatchError(f"batch {batch.number}: the model fails on it: {reason[0] if reason else type(error).__name__}")


def explain_failed_inputs(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> AfmFxError:
    """The typed error for one batch of inputs on which the program raised."""
    return explain_failed_batch(program, Batch(0, 0, args, kwargs), error)


def explain_non_finite(program: Program, suspects: Sequence[tuple[Batch, Tensor]]) -> AfmFxError:
    """The typed error for batches whose features at some site are not all finite (or overflow)."""
    for batch, rows in suspects:
        if not rows.isfinite().all():
            found = _watch(program, batch, check_finite=True)
            return found or CalibrationError(f"batch {batch.number} has NaN or infinite features")
    numbers = sorted({batch.number for batch, _ in suspects})
    return CalibrationError(f"batches {numbers[0]} to {numbers[-1]}: features are too large to square in float32")


def _watch(program: Program, batch: Batch, *, check_finite: bool) -> AfmFxError | None:
    watch = _Watch(program, batch, check_finite=check_finite)
    try:
        with torch.no_grad():
            watch.run(*flat_inputs(program, batch), enable_io_processing=False)
    except _FoundError as found:
        return found.error
    except (IndexError, RuntimeError):
        return None
    return None
