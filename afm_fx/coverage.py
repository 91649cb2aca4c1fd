"""Coverage: how much of a model's tables calibration saw, and how much of other traffic it missed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from afm_fx.batches import checked_batches, flat_inputs
from afm_fx.diagnosis import explained_failure
from afm_fx.inputs import Inputs
from afm_fx.program import Program
from afm_fx.taps import joint_taps, plain_taps
from afm_fx.traffic import Traffic, TrafficCounter
from afm_fx.watched_run import node_values


@dataclass(frozen=True)
class Coverage:
    """What calibration saw of one table.

    Attributes:
        rows_seen: rows of the table that were looked up.
        expected_unseen: the share of later lookups that bases were made for on rows not looked up.
        held_out_unseen: the share of held-out lookups that was of such rows; None where there were none to count.
    """

    rows_seen: int
    expected_unseen: float
    held_out_unseen: float | None = None

    def describe(self, rows: int) -> str:
        """In words, for a table of so many rows."""
        text = (
            f"{self.rows_seen:,} of {rows:,} rows seen; {self.expected_unseen:.1%} of later lookups expected on others"
        )
        return text if self.held_out_unseen is None else f"{text}, {self.held_out_unseen:.1%} of those held out were"


def traffic_of(program: Program, batches: Iterable[Inputs], max_rows: int | None = None) -> dict[str, Traffic]:
    """How often batches look up each row of every table, by site name; nothing but the ids is computed.

    Raises:
        BatchError: a batch does not fit.
    """
    taps = (*plain_taps(program.graph_module), *joint_taps(program.graph_module))
    counter = TrafficCounter(program.graph_module, taps)
    ids_of_batch = node_values(program.graph_module, counter.nodes)
    for batch in checked_batches(program, batches, max_rows):
        with torch.no_grad(), explained_failure(program, batch):
            counter.add(ids_of_batch(flat_inputs(program, batch)))
    return counter.result()


def coverage_of(traffic: Traffic, held_out: Traffic | None, expected_unseen: float | None) -> Coverage:
    """The coverage of a table.

    Args:
        traffic: of calibration.
        held_out: of other rows, None where there are none.
        expected_unseen: the share that bases were made for, None for what the traffic says.
    """
    unseen = traffic.rows_seen < traffic.rows
    expected = traffic.unseen_share if expected_unseen is None else expected_unseen
    missed = None if held_out is None else traffic.missed(held_out)
    return Coverage(traffic.rows_seen, expected if unseen else 0.0, missed)
