"""Quantises the Linears of an ONNX file to int8 with ONNX Runtime's own quantiser, and measures the error.

Weights are stored in int8 with a scale per column; what flows into a Linear is quantised when it runs, with one scale
for the whole batch. So the output of a row depends a little on the rows beside it. The file holds standard operators
(``DynamicQuantizeLinear``, ``MatMulInteger``); ONNX Runtime fuses them when it loads the file.

Tables stay as they are; to shrink them there is :mod:`afm_fx.reduced_precision`. The quantiser holds the whole file in
memory, about three times.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import Tensor

from afm_fx.artifact import external_data_path, read_artifact
from afm_fx.errors import ExportError, UserError, short_reason
from afm_fx.file_inputs import file_examples, random_file_inputs
from afm_fx.inputs import Inputs
from afm_fx.onnx_check import refuse_findings
from afm_fx.onnx_export import EXTERNAL_DATA_BYTES
from afm_fx.onnx_parity import check_file
from afm_fx.onnx_runtime import import_runtime
from afm_fx.onnx_signature import MADE_BY, sign
from afm_fx.output_directory import refuse_existing_file, staged_outputs
from afm_fx.quiet import quiet
from afm_fx.recipe import FileRecipe, Recipe, file_recipe
from afm_fx.reduced_precision import PrecisionReport, difference
from afm_fx.runtime import Session

SMALLEST_WEIGHT = 4096
"""Linears of fewer weights stay as they are: quantising what flows in costs more than the product."""

RANDOM_ROWS = 256
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0}
"""Attributes of a Gemm that the quantiser takes for a Linear; it leaves others as they are."""


def quantize_onnx(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    inputs: Inputs | None = None,
    *,
    smallest_weight: int = SMALLEST_WEIGHT,
    force: bool = False,
) -> PrecisionReport:
    """Writes a copy of an ONNX file whose Linears compute in int8, and runs both to tell the error.

    External weights, where there are any, go to ``<out>.data``. Weights take 7 of the 8 bits: processors without int8
    dot products (VNNI) add pairs of products in 16 bits, where full 8 bits overflow and give wrong outputs.

    Args:
        path: a float ONNX file, such as :func:`afm_fx.export_onnx` writes. It is left as it is.
        out: the quantised file.
        inputs: rows to compare the two files on; real ones tell most. Random where left out (see
            :func:`afm_fx.file_inputs.random_file_inputs`).
        smallest_weight: Linears of fewer weights stay as they are.
        force: replace an existing file.

    Raises:
        OutputExistsError: ``out`` exists and ``force`` is not set.
        FileFormatError: there is no such file, or it is no ONNX file.
        MissingPackageError: ONNX Runtime is not installed.
        BatchError: the inputs do not fit the file.
        UserError: ``out`` is ``path``, no Linear is large enough, or nothing can be written.
        ExportError: the quantiser or ONNX Runtime fails on the file.
    """
    source, target = Path(path), Path(out)
    examples = file_examples(read_artifact(source).inputs)  # refuses a file with unsafe paths
    if source.absolute() == target.absolute():
        raise UserError(f"the quantised file would replace '{source}'; choose another path")
    names = (target.name, external_data_path(target).name)
    for name in names:
        refuse_existing_file(target.with_name(name), force=force)
    batch = random_file_inputs(examples, RANDOM_ROWS, 0) if inputs is None else inputs
    model = onnx.load(source)
    reduced, kept = _products(model, smallest_weight)
    with staged_outputs(target.parent, names) as staging, tempfile.TemporaryDirectory() as folder:
        unsigned, staged = Path(folder) / "int8.onnx", staging / target.name
        _run_quantizer(model, unsigned, [name for name, _ in kept])
        quantized = ir.from_proto(onnx.load(unsigned))
        _sign(quantized, model)
        large = sum(tensor.stat().st_size for tensor in Path(folder).iterdir()) > EXTERNAL_DATA_BYTES
        ir.save(quantized, staged, external_data=external_data_path(staged).name if large else None)
        refuse_findings(staged, control_flow=True)  # as the float file has it
        check_file(staged)
        error = difference([(_outputs(staged, batch), _outputs(source, batch))])
        size = sum(file.stat().st_size for file in staging.iterdir())
    before = sum(each.stat().st_size for each in (source, external_data_path(source)) if each.exists())
    return PrecisionReport(before, size, reduced, kept, error)


def _products(model: onnx.ModelProto, smallest_weight: int) -> tuple[tuple[tuple[str, str], ...], ...]:
    """The products that are quantised, and those that stay with the reason; every product gets a name.

    Products of two values that depend on the inputs stay as well: the quantiser takes constants only.
    """
    weights = {each.name: each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    reduced, kept = [], []
    for position, node in enumerate(each for each in model.graph.node if each.op_type in _PRODUCTS):
        node.name = node.name or f"product_{position}"
        weight = weights.get(node.input[1])
        if weight is None:
            kept.append((node.name, "its weights are no float32 constant, and the quantiser takes only these"))
        elif (count := math.prod(weight.dims)) < smallest_weight:
            kept.append((node.name, f"it has {count:,} weights, int8 pays from {smallest_weight:,} on"))
        elif any(_PLAIN.get(each.name) not in (None, onnx.helper.get_attribute_value(each)) for each in node.attribute):
            kept.append((node.name, "it scales or transposes what it reads"))
        else:
            reduced.append((node.name, "int8"))
    if not reduced:
        shown = "; ".join(f"'{name}': {reason}" for name, reason in kept) or "it has none"
        raise UserError(f"the file has no Linear to quantise: {shown}")
    return tuple(reduced), tuple(kept)


def _sign(quantized: ir.Model, model: onnx.ModelProto) -> None:
    """Gives it the metadata of the float file, with this step in the recipe; one without gets one that begins here."""
    metadata = {each.key: each.value for each in model.metadata_props}
    for node in quantized.graph.all_nodes():
        node.metadata_props.clear()
    quantized.metadata_props.clear()
    quantized.metadata_props.update(metadata)  # how typed inputs are made, for one
    maker = f"{model.producer_name or 'unknown'} {model.producer_version}".strip()
    known = file_recipe(metadata) or FileRecipe(Recipe(), made_by=MADE_BY, exporter=maker)
    sign(quantized, replace(known, recipe=known.recipe.then("Linears in int8")))


def _run_quantizer(model: onnx.ModelProto, out: Path, kept: Sequence[str]) -> None:
    import_runtime()  # says what to install
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - an extra (cpu or gpu)

    try:
        with quiet():  # it advises steps that the exporter has taken
            quantize_dynamic(
                model,
                out,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                # The quantiser makes a MatMul of every Gemm first, and calls it so.
                nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],
                use_external_data_format=True,  # a protobuf of more than 2 GB cannot be written
            )
    except Exception as error:  # the quantiser raises many unrelated types
        raise ExportError(f"ONNX Runtime's quantiser fails on the file: {short_reason(error)}") from error


def _outputs(path: Path, batch: Inputs) -> list[Tensor]:
    outputs = Session(path, warm_up=1).run(batch)
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs.values())
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise ExportError(f"'{path.name}' does not give finite outputs on the inputs given, so no error can be told")
    return tensors
