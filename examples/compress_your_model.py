"""Compresses a trained model in ten lines; run ``python examples/click_model.py`` first, or put your model here."""

import numpy as np
import torch
from click_model import click_model

import afm_fx

model, example_inputs = click_model()
model.load_state_dict(torch.load("click_model.pt", weights_only=True))
rows = {name: torch.from_numpy(column) for name, column in np.load("clicks.npz").items()}
batches = [{name: column[start : start + 4096] for name, column in rows.items()} for start in range(0, 40_960, 4096)]

compressed = afm_fx.compress(model, batches, afm_fx.Budget(parameters=0.2), example_inputs)
print(compressed.plan.table())
print(compressed.report.table())

low_rank = compressed.program
print(low_rank.run(batches[0]))
print(afm_fx.export_onnx(low_rank, "low_rank.onnx").table())
