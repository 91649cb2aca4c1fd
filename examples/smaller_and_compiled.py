"""Serves a compressed model in three more forms: smaller tables, int8 Linears, and machine code without Python.

``python -m examples.smaller_and_compiled DIR`` writes ``reduced.onnx``, ``int8.onnx`` and ``low_rank.pt2`` into DIR;
the last one needs a C++ compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

import afm_fx
from examples.click_model import CLICKS, click_model


def main(directory: Path) -> None:
    """Compresses, reduces, compiles, loads and compares."""
    torch.manual_seed(0)
    model, example = click_model()
    data = CLICKS.draw(8_192)
    rows = {"ids": torch.from_numpy(data.ids), "dense": torch.from_numpy(data.dense)}
    low_rank = afm_fx.compress(model, [rows], afm_fx.Fixed(embedding=8, linear=32), example).program

    reduced = afm_fx.reduce_precision(low_rank, "int8", batches=[rows])
    print(reduced.report.table())
    file = afm_fx.export_onnx(reduced.program, directory / "reduced.onnx").path
    int8 = directory / "int8.onnx"
    quantize_dynamic(
        file, int8, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
    )
    quantized, exact = (torch.as_tensor(afm_fx.Session(path).run(rows)) for path in (int8, file))
    difference = float((quantized - exact).abs().max())
    print(f"largest difference of int8 Linears: {difference:.1e}")

    package = afm_fx.export_aoti(low_rank, directory / "low_rank.pt2").path
    served = afm_fx.load_aoti(package)
    few = {name: column[:1_000] for name, column in rows.items()}
    difference = float((served.run(few) - low_rank.run(few)).abs().max())
    print(f"largest difference of the package to the program: {difference:.1e}")

    alone = torch._inductor.aoti_load_package(str(package))  # torch alone loads it too, and checks nothing
    print(f"click probabilities: {alone(**few)[:3].tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
