"""int8 Linears by ONNX Runtime's own quantiser: weights in int8 with a scale per column, what flows in quantised when
it runs, with one scale for the whole batch.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from afm_fx.io import quiet

SMALLEST_WEIGHT = 4096
"""Linears of fewer weights stay as they are: quantising what flows in costs more than the product."""


def quantize_linears(path: Path, out: Path, smallest_weight: int = SMALLEST_WEIGHT) -> None:
    """Writes a copy of an ONNX file whose Linears compute in int8; tables stay as they are.

    Weights take 7 of the 8 bits: processors without int8 dot products (VNNI) add pairs of products in 16 bits, where
    full 8 bits overflow and give wrong outputs.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - an extra (cpu or gpu)

    graph = onnx.load(path, load_external_data=False).graph
    weights = {each.name: math.prod(each.dims) for each in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    small = [node.name for node in products if weights.get(node.input[1], 0) < smallest_weight]
    with quiet():  # it advises steps that the exporter has taken
        quantize_dynamic(
            path,
            out,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            # The quantiser makes a MatMul of every Gemm first, and calls it so.
            nodes_to_exclude=[*small, *(f"{name}_MatMul" for name in small)],
        )
