"""The zoo: every model that the whole-model tests run on, and one capture of each per process."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn

from afm_fx.program.capture import capture
from afm_fx.program.program import Program
from tests.zoo.deepctr_models import deepctr_entries, deepctr_installed
from tests.zoo.entry import ZooEntry
from tests.zoo.paper_models import paper_entries
from tests.zoo.plain_models import plain_entries

REPRESENTATIVE = frozenset(
    {
        "AutoInt", "BagModel", "BehaviourTransformer", "DCN-vector", "DIN", "DLRM", "DeepFM", "FactorizationMachine",
        "FiBiNET", "HandMadeLookups", "MMOE", "MultiHotDLRM", "StackedTableModel", "TupleOutputModel", "VarLen-masked",
        "xDeepFM",
    }
)  # fmt: skip
"""A third that has every law, every kind of lookup, and every form of inputs and outputs; all else is thorough."""

ZOO: tuple[ZooEntry, ...] = (*deepctr_entries(), *plain_entries(), *paper_entries())


def zoo_params(entries: Sequence[ZooEntry] = ZOO, *, refused: bool = False) -> list[Any]:
    """The entries as pytest parameters, those of an absent package skipped with the reason.

    Args:
        refused: the models that cannot be captured instead of those that can.
    """
    return [
        pytest.param(entry, id=entry.name, marks=_marks(entry))
        for entry in entries
        if (entry.refused is not None) == refused
    ]


def _marks(entry: ZooEntry) -> list[pytest.MarkDecorator]:
    """One process for all tests of a model (``--dist loadgroup``), so that it is captured once."""
    marks = [pytest.mark.xdist_group(entry.name)]
    if entry.name not in REPRESENTATIVE:
        marks.append(pytest.mark.thorough)
    if entry.needs_deepctr and not deepctr_installed():
        marks.append(pytest.mark.skip(reason="deepctr-torch is not installed"))
    return marks


@functools.cache
def captured(name: str) -> tuple[nn.Module, Program]:
    """The model and its program; made once per process, so tests must not change them."""
    entry = next(entry for entry in ZOO if entry.name == name)
    model, example = entry.load()
    return model, capture(model, example)
