"""What matrix products and lookups take on the machine at hand, measured with ONNX Runtime over a grid of sizes."""

from __future__ import annotations

import bisect
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from afm_fx.call_times import median_us, quiet_session
from afm_fx.errors import FileFormatError
from afm_fx.work import WorkLedger
from passes.parameter_ledger import Ranks

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Code widths at which lookups are timed."""

TABLE_ROWS = 100_000
"""Rows of the table that they are timed in: more than lie in a processor's cache."""

SECONDS = 0.02
"""Spent on each size, about."""

OPSET = 18


@dataclass(frozen=True)
class LatencyTable:
    """Microseconds of products and lookups for one batch.

    Attributes:
        batch_size: rows of the batch.
        provider: ONNX Runtime's name of the execution provider.
        threads: threads within an operator.
        extents: inputs, and outputs, of the weights that were timed, ascending.
        products_us: by number of inputs and number of outputs, each as in ``extents``; never falling along either.
        widths: code widths, ascending.
        lookups_us: one lookup for every row, by code width; never falling.
    """

    batch_size: int
    provider: str
    threads: int
    extents: tuple[int, ...]
    products_us: tuple[tuple[float, ...], ...]
    widths: tuple[int, ...]
    lookups_us: tuple[float, ...]

    def product_us(self, inputs: int, outputs: int) -> float:
        """The product of ``[batch, inputs]`` with ``[inputs, outputs]``; beyond the grid in proportion."""
        if inputs == 0 or outputs == 0:
            return 0.0
        columns = [_interpolated(self.extents, row, outputs) for row in self.products_us]
        return _interpolated(self.extents, columns, inputs)

    def lookup_us(self, width: int) -> float:
        """A lookup of codes of a width for every row of the batch."""
        return _interpolated(self.widths, self.lookups_us, width)

    def predicted_us(self, work: WorkLedger, ranks: Ranks) -> float:
        """What the products and lookups of a program take together; everything else is not in it."""
        spent = 0.0
        for product in work.products:
            if product.weight.count(ranks):
                inputs, outputs = product.weight.columns.at(ranks), product.weight.rows.at(ranks)
                spent += product.positions * self.product_us(inputs, outputs)
        return spent + sum(
            each.positions * self.lookup_us(width) for each in work.lookups if (width := each.width(ranks))
        )

    def to_json(self) -> str:
        """The table as a JSON document."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> LatencyTable:
        """Reads what :meth:`to_json` wrote.

        Raises:
            FileFormatError: it is something else.
        """
        try:
            fields = json.loads(text)
            fields["products_us"] = tuple(tuple(row) for row in fields["products_us"])
            for name in ("extents", "widths", "lookups_us"):
                fields[name] = tuple(fields[name])
            return LatencyTable(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"this is no latency table: {error!r}") from error


@functools.cache
def measured_table(
    batch_size: int, provider: str, threads: int, largest: int, seconds: float = SECONDS
) -> LatencyTable:
    """Measures a table on this machine; the same one is measured once per process.

    Args:
        batch_size: rows of the batch.
        provider: ONNX Runtime's name of the execution provider.
        threads: threads within an operator.
        largest: inputs or outputs that matter.
        seconds: spent on each size, about.
    """
    extents = (1, *(8 * 2**power for power in range(max(1, (max(largest, 9) - 1).bit_length() - 2))))
    time = functools.partial(_timed, batch_size=batch_size, provider=provider, threads=threads, seconds=seconds)
    start = time(_identity())
    products = [[max(0.0, time(_product(inputs, outputs)) - start) for outputs in extents] for inputs in extents]
    lookups = [max(0.0, time(_lookup(width)) - start) for width in WIDTHS]
    rising = np.maximum.accumulate(np.maximum.accumulate(np.array(products), axis=0), axis=1)
    return LatencyTable(
        batch_size, provider, threads, extents, tuple(tuple(row) for row in rising.tolist()),
        WIDTHS, tuple(np.maximum.accumulate(lookups).tolist()),
    )  # fmt: skip


Feed = Callable[[int], dict[str, Any]]


def _timed(model: tuple[bytes, Feed], *, batch_size: int, provider: str, threads: int, seconds: float) -> float:
    content, feed = model
    session = quiet_session(content, threads, provider)
    inputs = feed(batch_size)
    return median_us(lambda: session.run(None, inputs), seconds)


def _identity() -> tuple[bytes, Feed]:
    """A call that does nothing."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return _model([node], [_float("x", 1)], [_float("y", 1)], []), lambda rows: {"x": _ones(rows, 1)}


def _product(inputs: int, outputs: int) -> tuple[bytes, Feed]:
    weight = numpy_helper.from_array(_ones(inputs, outputs), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    content = _model([node], [_float("x", inputs)], [_float("y", outputs)], [weight])
    return content, lambda rows: {"x": _ones(rows, inputs)}


def _lookup(width: int) -> tuple[bytes, Feed]:
    node = helper.make_node("Gather", ["table", "ids"], ["y"], axis=0)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows"])
    content = _model([node], [_float("table", width), ids], [_float("y", width)], [])
    table, generator = _ones(TABLE_ROWS, width), np.random.default_rng(0)
    return content, lambda rows: {"table": table, "ids": generator.integers(TABLE_ROWS, size=rows)}


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, "probe", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    content: bytes = model.SerializeToString()
    onnx.checker.check_model(model)
    return content


def _float(name: str, width: int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])


def _ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, dtype=np.float32)


def _interpolated(sizes: Sequence[int], values: Sequence[float], size: int) -> float:
    """The value at a size: linear between the sizes known, in proportion beyond the last, the first below it."""
    if size >= sizes[-1]:
        return values[-1] * size / sizes[-1]
    place = bisect.bisect_right(sizes, size)
    if place == 0:
        return values[0]
    share = (size - sizes[place - 1]) / (sizes[place] - sizes[place - 1])
    return values[place - 1] + share * (values[place] - values[place - 1])
