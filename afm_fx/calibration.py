"""Calibration: what every site's features look like on real rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from afm_fx.batches import Batch, checked_batches, flat_inputs
from afm_fx.diagnosis import explain_failed_batch, explain_non_finite
from afm_fx.errors import CalibrationError
from afm_fx.inputs import Inputs
from afm_fx.moments import NARROW_WIDTH, Moments, RunningMoments
from afm_fx.program import Program
from afm_fx.progress import track
from afm_fx.tensor_files import complete, load_tensors, save_tensors
from passes.graph_tools import clone_graph_module
from passes.sites import Site, find_sites

KIND = "statistics"
VERSION = 1

PENDING_ROWS = 4096
"""Rows of a narrow site gathered before their products are taken: small batches would pay per call."""


@dataclass(frozen=True)
class Statistics:
    """Moments per site over the calibration rows; mergeable with ``+``.

    Attributes:
        moments: by site name.
        rows: number of rows of the batches (a site may see more, for example one per position of a sequence).
        batches: number of batches.
    """

    moments: Mapping[str, Moments]
    rows: int
    batches: int

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both sets of rows.

        Raises:
            CalibrationError: the two belong to models with different sites.
        """
        if self.moments.keys() != other.moments.keys():
            differing = sorted(self.moments.keys() ^ other.moments.keys())
            raise CalibrationError(
                f"statistics of different models cannot be merged: sites {differing[:5]} are not in both"
            )
        moments = {name: own + other.moments[name] for name, own in self.moments.items()}
        return Statistics(moments, self.rows + other.rows, self.batches + other.batches)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the statistics as safetensors.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
        """
        tensors = {}
        for name, moments in self.moments.items():
            tensors[f"{name}/mean"], tensors[f"{name}/scatter"] = moments.mean, moments.scatter
        counts = {name: moments.count for name, moments in self.moments.items()}
        header = {"rows": self.rows, "batches": self.batches, "counts": counts}
        save_tensors(path, KIND, VERSION, header, tensors, force=force)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Statistics:
        """Reads statistics.

        Raises:
            FileFormatError: the file is missing, damaged or of another kind or version.
        """
        header, tensors = load_tensors(path, KIND, VERSION)
        with complete(path, KIND):
            moments = {
                name: Moments(int(count), tensors[f"{name}/mean"], tensors[f"{name}/scatter"])
                for name, count in header["counts"].items()
            }
            return Statistics(moments, int(header["rows"]), int(header["batches"]))


def calibrate(
    program: Program,
    batches: Iterable[Inputs],
    *,
    max_rows: int | None = None,
    product_dtype: torch.dtype | None = None,
) -> Statistics:
    """Runs the program over batches and collects the moments of every site's features.

    Args:
        program: the captured model.
        batches: what the model takes, batch by batch.
        max_rows: stop after so many rows.
        product_dtype: dtype of the products within a batch for sites wider than 64 features; None for the program's
            own. Means, and sums over batches, are float64 always. With float32 a covariance carries a relative error
            of about 1e-7, no more than the float32 features themselves.

    Raises:
        CalibrationError: no batches, or NaN or infinite features (which batch, which node).
        BatchError: a batch does not fit, or holds an id outside its table (which batch, which input, which id).
    """
    sites = [site for site in find_sites(program.graph_module) if site.refusal is None]
    tapped = _tapped(program.graph_module, sites)
    totals = {site.name: _Total(program, site.width, product_dtype) for site in sites}
    rows = count = 0
    with torch.no_grad():
        for batch in track(checked_batches(program, batches, max_rows), "calibrating", _length(batches)):
            features = _run(program, tapped, batch)
            for total, values in zip(totals.values(), features, strict=True):
                total.add(values, batch)
            rows, count = rows + batch.rows, count + 1
    if count == 0:
        raise CalibrationError("there are no calibration batches")
    return Statistics({name: total.result() for name, total in totals.items()}, rows, count)


def _length(batches: Iterable[Inputs]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def _tapped(module: GraphModule, sites: list[Site]) -> GraphModule:
    """The program with the sites' features as its output."""
    tapped = clone_graph_module(module)
    by_name = {node.name: node for node in tapped.graph.nodes}
    output = next(node for node in tapped.graph.nodes if node.op == "output")
    taps: tuple[tuple[Node, ...], ...] = tuple(tuple(by_name[name] for name in site.nodes) for site in sites)
    output.args = (taps,)
    tapped.graph._codegen = torch.fx.graph.CodeGen()
    tapped.graph.eliminate_dead_code()
    tapped.recompile()
    return tapped


def _run(program: Program, tapped: GraphModule, batch: Batch) -> Any:
    try:
        return tapped(*flat_inputs(program, batch))
    except (IndexError, RuntimeError) as error:
        raise explain_failed_batch(program, batch, error) from error


class _Total:
    """Running moments of one site; small batches are gathered first, since every product has a price per call."""

    def __init__(self, program: Program, width: int, product_dtype: torch.dtype | None) -> None:
        self._program = program
        self._width = width
        self._product_dtype = torch.float64 if width <= NARROW_WIDTH else product_dtype
        self._moments = RunningMoments(width)
        self._pending: list[tuple[Batch, Tensor]] = []
        self._pending_rows = 0

    def add(self, values: tuple[Tensor, ...], batch: Batch) -> None:
        """Adds the features of every use of the site in one batch."""
        for value in values:
            rows = value.reshape(-1, self._width)
            self._pending.append((batch, rows))
            self._pending_rows += rows.shape[0]
        if self._pending_rows >= PENDING_ROWS:
            self._flush()

    def result(self) -> Moments:
        """The moments of all rows added."""
        self._flush()
        return self._moments.result()

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = torch.cat([rows for _, rows in self._pending]) if len(self._pending) > 1 else self._pending[0][1]
        if not self._moments.add(rows, self._product_dtype or rows.dtype):
            raise explain_non_finite(self._program, self._pending)
        self._pending, self._pending_rows = [], 0
