from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from passes.serving.table_layout import RowGroup, TableLayout

SIZES = {"small": (3, 2), "large": (40, 2), "middle": (9, 1)}
STARTS = [0, 3, 43]
WIDTH = 3


class Held:
    """Tables whose memory tells whether it is still there."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        arrays = {name: generator.standard_normal(shape) for name, shape in SIZES.items()}
        self.memory = {name: weakref.ref(array) for name, array in arrays.items()}
        self.tables = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def layout(self) -> TableLayout:
        groups = (RowGroup({name: table}) for name, table in self.tables.items())
        return TableLayout(tuple(groups))

    def alive(self) -> tuple[str, ...]:
        return tuple(name for name, memory in self.memory.items() if memory() is not None)


class WhileWritten(TorchFunctionMode):
    """Notes whose memory is there whenever a block of rows is written."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.held, self.seen = held, list[tuple[str, ...]]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.__setitem__ and isinstance(args[2], Tensor):
            self.seen.append(self.held.alive())
        return function(*args, **(kwargs or {}))


def test_tables_are_let_go_one_by_one_the_largest_first() -> None:
    held = Held()
    packed = torch.empty(52, WIDTH, dtype=torch.float64)
    with WhileWritten(held) as written:
        held.layout().fill(packed, free_sources=True)
    assert written.seen == [("small", "large", "middle"), ("small", "middle"), ("small",)]
    assert held.alive() == ()
    assert all(table._base is None and table.data_ptr() >= packed.data_ptr() for table in held.tables.values())


def test_rows_and_columns_that_no_table_fills_are_zero_and_the_sources_stay() -> None:
    held = Held()
    packed = torch.full((52, WIDTH), torch.nan, dtype=torch.float64)
    held.layout().fill(packed)
    assert held.layout().starts == [*STARTS, len(packed)]
    assert held.alive() == tuple(SIZES)
    wanted = torch.zeros_like(packed)
    for (name, (rows, width)), start in zip(SIZES.items(), STARTS, strict=True):
        wanted[start : start + rows, :width] = held.tables[name]
    assert torch.equal(packed, wanted)
