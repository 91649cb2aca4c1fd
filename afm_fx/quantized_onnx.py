"""Quantises the Linears of an ONNX file to int8 with ONNX Runtime's own quantiser, and measures the error.

Weights are stored in int8 with a scale per column; what flows into a Linear is quantised when it runs, with one scale
for the whole batch. So the output of a row depends a little on the rows beside it. The file holds standard operators
(``DynamicQuantizeLinear``, ``MatMulInteger``); ONNX Runtime fuses them when it loads the file.

Only Linears reach the quantiser. By itself it would quantise tables too, and it wants the whole model in memory;
so everything but the Linears' weights is taken out of the file before and put back after, which works for any size.
To shrink tables there is :mod:`afm_fx.reduced_precision`.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from afm_fx.artifact import read_artifact
from afm_fx.errors import BatchError, ExportError, MissingPackageError, UserError, short_reason
from afm_fx.file_inputs import feed_of, file_examples, random_file_inputs
from afm_fx.inputs import Inputs
from afm_fx.onnx_check import refuse_findings
from afm_fx.onnx_export import EXTERNAL_DATA_BYTES
from afm_fx.onnx_parity import check_file
from afm_fx.onnx_runtime import open_session
from afm_fx.onnx_signature import MADE_BY, sign
from afm_fx.output_directory import refuse_existing_file, staged_outputs
from afm_fx.recipe import FileRecipe, Recipe, file_recipe
from afm_fx.tables import render_table

SMALLEST_WEIGHT = 4096
"""Linears of fewer weights stay as they are: quantising what flows in costs more than the product."""

RANDOM_ROWS = 256
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


@dataclass(frozen=True)
class QuantizationReport:
    """What was written and how far its outputs are from those of the float file.

    Attributes:
        path: the quantised file.
        data_path: the file of external weights beside it, None where the weights are inside.
        bytes_before: size of the float file, external weights included.
        bytes_after: the same of the quantised one.
        quantized: number of Linears in int8.
        kept: (Linear, reason) of those left as they are.
        operators: (operator, count) pairs, the most frequent first.
        rows: rows that both files were run on.
        largest_difference: largest absolute difference of an output.
        rmse: root mean square difference of the outputs.
        seconds: wall-clock time.
    """

    path: Path
    data_path: Path | None
    bytes_before: int
    bytes_after: int
    quantized: int
    kept: tuple[tuple[str, str], ...]
    operators: tuple[tuple[str, int], ...]
    rows: int
    largest_difference: float
    rmse: float
    seconds: float

    def table(self) -> str:
        """The report as text."""
        rows = [
            ("Linears in int8", self.quantized),
            ("Linears as they were", len(self.kept)),
            ("bytes", f"{self.bytes_before:,} -> {self.bytes_after:,}"),
            ("external weights", self.data_path.name if self.data_path else "none"),
            (
                "operators",
                f"{sum(count for _, count in self.operators)}: "
                + ", ".join(f"{name} {count}" for name, count in self.operators),
            ),
            (f"output error over {self.rows:,} rows", f"rmse {self.rmse:.1e}, largest {self.largest_difference:.1e}"),
            ("seconds", f"{self.seconds:.1f}"),
        ]
        return render_table(f"Quantised {self.path}", ("property", "value"), rows, left=2)


def quantize_onnx(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    inputs: Inputs | None = None,
    *,
    smallest_weight: int = SMALLEST_WEIGHT,
    reduce_range: bool = True,
    force: bool = False,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
    seed: int = 0,
) -> QuantizationReport:
    """Writes a copy of an ONNX file whose Linears compute in int8, and runs both to tell the error.

    Args:
        path: a float ONNX file, such as :func:`afm_fx.export_onnx` writes. It is left as it is.
        out: the quantised file. External weights go to ``<out>.data``.
        inputs: rows to compare the two files on; real ones tell most. Random where left out (see
            :func:`afm_fx.file_inputs.random_file_inputs`).
        smallest_weight: Linears of fewer weights stay as they are.
        reduce_range: weights in 7 of the 8 bits. Processors without int8 dot products (VNNI) add pairs of products in
            16 bits, where full 8 bits overflow and give wrong outputs.
        force: replace an existing file.
        external_data_bytes: weights beyond this many bytes go to the second file.
        seed: of the random inputs.

    Raises:
        OutputExistsError: ``out`` exists and ``force`` is not set.
        FileFormatError: there is no such file, or it is no ONNX file.
        MissingPackageError: ONNX Runtime is not installed.
        BatchError: the inputs do not fit the file.
        UserError: ``out`` is ``path``, no Linear is large enough, or nothing can be written.
        ExportError: the quantiser or ONNX Runtime fails on the file.
    """
    started = time.perf_counter()
    source, target = Path(path), Path(out)
    examples = file_examples(read_artifact(source).inputs)
    if source.absolute() == target.absolute():
        raise UserError(f"the quantised file would replace '{source}'; choose another path")
    names = (target.name, _data_path(target).name)
    for name in names:
        refuse_existing_file(target.with_name(name), force=force)
    batch = random_file_inputs(examples, RANDOM_ROWS, seed) if inputs is None else inputs
    model = ir.load(source)
    kept = _kept(model, smallest_weight)
    with staged_outputs(target.parent, names) as staging:
        quantized = _quantized(model, [name for name, _ in kept], reduce_range=reduce_range)
        _sign(quantized, model, reduce_range=reduce_range)
        external = _weight_bytes(quantized) > min(external_data_bytes, EXTERNAL_DATA_BYTES)
        if not external:
            _load_weights(quantized.graph)  # tables that were set aside may lie beside the float file
        staged = staging / target.name
        ir.save(quantized, staged, external_data=_data_path(staged).name if external else None)
        operators = _operators(quantized)
        refuse_findings(staged, control_flow=True)  # as the float file has it
        check_file(staged)
        rows, largest, rmse = _difference(source, staged, batch)
        size = sum(file.stat().st_size for file in staging.iterdir())
    return QuantizationReport(
        path=target,
        data_path=_data_path(target) if external else None,
        bytes_before=sum(each.stat().st_size for each in (source, _data_path(source)) if each.exists()),
        bytes_after=size,
        quantized=dict(operators).get("MatMulInteger", 0),
        kept=kept,
        operators=operators,
        rows=rows,
        largest_difference=largest,
        rmse=rmse,
        seconds=time.perf_counter() - started,
    )


def _data_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _kept(model: ir.Model, smallest_weight: int) -> tuple[tuple[str, str], ...]:
    """The Linears that are not quantised, with the reason; every product gets a name."""
    kept, products = [], 0
    for position, node in enumerate(model.graph.all_nodes()):
        if node.op_type not in _PRODUCTS:
            continue
        node.name = node.name or f"product_{position}"
        products += 1
        reason = _reason(node, smallest_weight)
        if reason is not None:
            kept.append((node.name, reason))
    if len(kept) == products:
        shown = "; ".join(f"'{name}' {reason}" for name, reason in kept) or "it has none"
        raise UserError(f"the file has no Linear to quantise: {shown}")
    return tuple(kept)


def _reason(node: ir.Node, smallest_weight: int) -> str | None:
    """Why a product is not quantised."""
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return "multiplies two values that both depend on the inputs"
    if weight.dtype is not ir.DataType.FLOAT:
        return "has weights that are not float32, and the quantiser takes only these"
    count = weight.const_value.size
    if count < smallest_weight:
        return f"has {count:,} weights, fewer than the {smallest_weight:,} from which on int8 pays"
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    changed = [
        name for name, value in plain.items() if name in node.attributes and node.attributes[name].value != value
    ]
    return f"scales or transposes what it reads ({', '.join(changed)})" if changed else None


def _quantized(model: ir.Model, kept: list[str], *, reduce_range: bool) -> ir.Model:
    """The quantised model. Everything but the products' weights is out of the quantiser's sight."""
    aside = _set_aside(model.graph)
    _load_weights(model.graph)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        ir.save(model, before)
        _run_quantizer(before, after, kept, reduce_range=reduce_range)
        quantized = ir.load(after)
        _load_weights(quantized.graph)
    inputs = {str(value.name): value for value in quantized.graph.inputs}
    for name, tensor in aside.items():
        value = inputs[name]
        quantized.graph.inputs.remove(value)
        value.const_value = tensor
        quantized.graph.register_initializer(value)
    for node in quantized.graph.all_nodes():
        node.metadata_props.clear()
    quantized.metadata_props.clear()
    quantized.metadata_props.update(model.metadata_props)  # how typed inputs are made, for one
    return quantized


def _sign(quantized: ir.Model, model: ir.Model, *, reduce_range: bool) -> None:
    """Adds the step to the recipe of the float file; one that has none gets one that begins here."""
    source = f"{model.producer_name or 'unknown'} {model.producer_version or ''}".strip()
    known = file_recipe(model.metadata_props) or FileRecipe(Recipe(), made_by=MADE_BY, exporter=source)
    sign(quantized, replace(known, recipe=known.recipe.then("Linears in int8", reduce_range=reduce_range)))


def _set_aside(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Turns every constant that is no weight of a product into an input; returns their contents by name."""
    aside = {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is None or any(node.op_type in _PRODUCTS for node, _ in value.uses()):
            continue
        if value.is_graph_output() or value.is_graph_input():
            continue
        aside[name] = value.const_value
        value.dtype, value.shape = value.const_value.dtype, ir.Shape(value.const_value.shape.numpy())
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    return aside


def _load_weights(graph: ir.Graph) -> None:
    """Reads the weights that lie in a file of their own, so that the model can be saved elsewhere."""
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)


def _run_quantizer(before: Path, after: Path, kept: list[str], *, reduce_range: bool) -> None:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - an extra (cpu or gpu)
    except ImportError as error:
        raise MissingPackageError(
            "quantising needs ONNX Runtime, which is not installed: install afm-fx[cpu] or afm-fx[gpu]"
        ) from error
    # The quantiser makes a MatMul of every Gemm first, and calls it so.
    excluded = [*kept, *(f"{name}_MatMul" for name in kept)]
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises steps that the exporter has done
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_dynamic(
                before,
                after,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=reduce_range,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
            )
    except Exception as error:  # the quantiser raises many unrelated types
        raise ExportError(f"ONNX Runtime's quantiser fails on the file: {short_reason(error)}") from error
    finally:
        logger.setLevel(level)


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _operators(model: ir.Model) -> tuple[tuple[str, int], ...]:
    nodes = list(model.graph.all_nodes())
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in _STANDARD_DOMAINS})
    if foreign:
        raise ExportError(f"the quantiser made operators outside the standard ONNX domain: {', '.join(foreign)}")
    counts = Counter(node.op_type for node in nodes)
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _difference(source: Path, staged: Path, batch: Inputs) -> tuple[int, float, float]:
    """Rows, largest and root mean square difference of the floating outputs of two files."""
    wanted, found = (_outputs(path, batch) for path in (source, staged))
    largest, squares, count, rows = 0.0, 0.0, 0, 0
    for one, other in zip(found, wanted, strict=True):
        if not other.is_floating_point():
            continue
        difference = (one.double() - other.double()).abs()
        if not bool(difference.isfinite().all()):
            raise ExportError("the outputs are not finite on the inputs given, so the error cannot be told")
        largest = max(largest, float(difference.max()))
        squares += float(difference.square().sum())
        count += difference.numel()
        rows = max(rows, other.shape[0] if other.dim() else 1)
    return rows, largest, math.sqrt(squares / max(count, 1))


def _outputs(path: Path, batch: Inputs) -> list[torch.Tensor]:
    session = open_session(path)
    try:
        feed = feed_of(session, batch)
    except BatchError as error:
        raise BatchError(f"'{path.name}' {error}") from error
    try:
        outputs: list[Any] = session.run(None, feed)
    except Exception as error:  # ONNX Runtime's errors derive from nothing common
        raise ExportError(f"ONNX Runtime fails on '{path.name}': {short_reason(error)}") from error
    return [torch.as_tensor(output) for output in outputs]
