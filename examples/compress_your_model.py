"""Compresses a trained model in ten lines; first ``python -m examples.click_model``, then this."""

import numpy as np
import torch

import afm_fx
from examples.click_model import click_model

model, example_inputs = click_model()
model.load_state_dict(torch.load("click_model.pt", weights_only=True))
rows = {name: torch.from_numpy(column) for name, column in np.load("clicks.npz").items()}
starts = range(0, len(rows["ids"]), 4096)
batches = [{name: column[start : start + 4096] for name, column in rows.items()} for start in starts]

compressed = afm_fx.compress(model, batches, afm_fx.Budget(parameters=0.2), example_inputs)
print(compressed.plan.table())
print(compressed.report.table())

low_rank = compressed.program
print(low_rank.run(batches[0]))
print(afm_fx.export_onnx(low_rank, "low_rank.onnx").table())
