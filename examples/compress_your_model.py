"""Compresses a trained model in ten lines; first ``python -m examples.click_model``, then this."""

import numpy as np
import torch

import afm_fx
from examples.click_model import click_model

model, example_inputs = click_model()
model.load_state_dict(torch.load("click_model.pt", weights_only=True))
rows = {name: torch.from_numpy(column) for name, column in np.load("clicks.npz").items()}
compressed = afm_fx.compress(model, [rows], afm_fx.Budget(parameters=0.2), example_inputs)
print(compressed.plan.table())
print(afm_fx.export_onnx(compressed.program, "low_rank.onnx").table())
