"""Serves a compressed model in three more forms: smaller tables, int8 Linears, and machine code without Python.

``python -m examples.smaller_and_compiled DIR`` writes ``reduced.onnx``, ``int8.onnx`` and ``low_rank.pt2`` into DIR;
the last one needs a C++ compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

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
    print(afm_fx.quantize_onnx(file, directory / "int8.onnx", rows).table())

    package = afm_fx.export_aoti(low_rank, directory / "low_rank.pt2").path
    served = afm_fx.load_aoti(package)
    few = {name: column[:1_000] for name, column in rows.items()}
    difference = float((served.run(few) - low_rank.run(few)).abs().max())
    print(f"largest difference of the package to the program: {difference:.1e}")

    alone = torch._inductor.aoti_load_package(str(package))  # torch alone loads it too, and checks nothing
    print(f"click probabilities: {alone(**few)[:3].tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
