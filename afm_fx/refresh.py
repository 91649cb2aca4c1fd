"""Encodes a new checkpoint under a saved plan: only what changed since the folder was last written.

Models are retrained every hour, and most rows of most tables are not. The checkpoint is read once, in blocks; blocks
whose bytes are those that the folder's tables were made of keep their codes, tables without a changed block keep their
file. What is no large table (layers, decoders) is made again each time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from afm_fx.absent_tables import LARGE_BYTES, AbsentTables, Factory, replace_state, without_tables
from afm_fx.apply_files import AppliedFiles, write_tables
from afm_fx.calibration import Statistics
from afm_fx.checkpoints import open_checkpoint
from afm_fx.constant_units import without_units
from afm_fx.errors import PlanError
from afm_fx.inputs import Inputs
from afm_fx.plan import Plan
from afm_fx.program import Program
from afm_fx.refit import LOST, Refit, refit_plan
from afm_fx.streamed_plan import streamed_plan
from afm_fx.taps import joint_taps, plain_taps
from passes.errors import PassError
from passes.sites import SiteKind


@dataclass(frozen=True)
class Refreshed:
    """A folder of tables for a new checkpoint.

    Attributes:
        files: what was written, and the program.
        refit: what became of the sites, where statistics were given.
    """

    files: AppliedFiles
    refit: Refit | None = None

    @property
    def drifted(self) -> tuple[str, ...]:
        """Sites or tables whose code tells so much less of their features than it did that ranks are due."""
        if self.refit is not None:
            return tuple(site.name for site in self.refit.drift if site.lost)
        return tuple(
            table.name
            for table in self.files.tables
            if table.kept is not None and table.kept_first is not None and table.kept < table.kept_first - LOST
        )

    @property
    def calibration_is_due(self) -> bool:
        """Whether ranks and factors should be chosen again, from new batches."""
        return bool(self.drifted)

    def table(self) -> str:
        """What was done, as text."""
        kept = sum(not table.changed for table in self.files.tables)
        lines = [self.files.table()]
        if self.refit is not None:
            lines.append(self.refit.table())
        lines.append(f"{kept} of {len(self.files.tables)} tables are as they were")
        if self.calibration_is_due:
            lines.append(f"calibrate again: the codes of {', '.join(self.drifted)} keep less than they did")
        return "\n".join(lines)


def refresh(
    model: str | Factory | nn.Module,
    plan: Plan,
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    statistics: Statistics | None = None,
    example_inputs: Inputs | None = None,
    rows_per_block: int | None = None,
    large_bytes: int = LARGE_BYTES,
) -> Refreshed:
    """Encodes a new checkpoint of a model under a saved plan, into a folder that may hold the last one.

    The folder is as it was until it is complete. An interrupted refresh goes on where it was when it is called again
    for the same checkpoint.

    Args:
        model: see :func:`afm_fx.apply_to_files`.
        plan: of an earlier checkpoint; tables may have rows added at their end.
        checkpoint: see :func:`afm_fx.apply_to_files`.
        out: the folder. An empty one is filled.
        statistics: those that the plan was made from, to make factors again for this checkpoint
            (:func:`afm_fx.refit_plan`); tables are then mapped, and every table whose factor changed is encoded again.
            Without them, the plan's own factors are applied.
        example_inputs: one batch of at least 2 rows, where the model is a module.
        rows_per_block: see :func:`afm_fx.apply_to_files`.
        large_bytes: see :func:`afm_fx.apply_to_files`.

    Raises:
        UserError: see :func:`afm_fx.apply_to_files` and :func:`afm_fx.refit_plan`.
    """
    opened = open_checkpoint(Path(checkpoint))
    absent = without_tables(model, opened, example_inputs, large_bytes=large_bytes)
    refit = None if statistics is None else refit_plan(plan, _mapped(absent), statistics)
    applied = _grown(plan, absent.program) if refit is None else refit.plan
    streamed = streamed_plan(absent, applied)
    files = write_tables(streamed, opened, applied, Path(out), reuse=True, rows_per_block=rows_per_block)
    return Refreshed(files, refit)


def _mapped(absent: AbsentTables) -> Program:
    """The program with its large tables as the checkpoint has them."""
    module = absent.program.clone().graph_module
    state = module.state_dict()
    replace_state(module, {name: table.mapped().to(state[name].dtype) for name, table in absent.tables.items()})
    return absent.program.with_graph(module)


def _grown(plan: Plan, program: Program) -> Plan:
    """The plan for tables that have rows added at their end; a factor does not depend on how many there are."""
    try:
        module = without_units(program, plan.units).graph_module
    except PassError as error:
        raise PlanError(f"the plan does not fit this program: {error}") from error
    rows = {tap.site.name: tap.site.rows for tap in (*plain_taps(module), *joint_taps(module))}
    sites = tuple(
        replace(site, shape=(max(site.shape[0], rows.get(site.name, 0)), site.shape[1]))
        if site.kind is SiteKind.EMBEDDING
        else site
        for site in plan.sites
    )
    return replace(plan, sites=sites)
