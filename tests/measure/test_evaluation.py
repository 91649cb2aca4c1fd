"""Rows with labels, and the logits of a program on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.measure.evaluation import labelled_rows, predicted_logits


class ClickAndConversion(nn.Module):
    """The probabilities of a click, and of a click with a conversion: a product, which no sigmoid ends in."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        click, conversion = self.heads(x).sigmoid().unbind(dim=1)
        return click, click * conversion


def test_a_product_of_probabilities_beside_a_sigmoid_is_turned_into_a_logit() -> None:
    torch.manual_seed(0)
    model, x = ClickAndConversion(), torch.randn(40, 3, dtype=torch.float64)
    program = afm_fx.capture(model, x)
    labels = (torch.arange(80).reshape(40, 2) % 3 == 0).float()
    with torch.no_grad():
        wanted = torch.stack([part.logit() for part in model(x)], dim=1)
    rows = labelled_rows(program, [(x[:25], labels[:25]), (x[25:], labels[25:])])
    torch.testing.assert_close(torch.from_numpy(predicted_logits(program, rows)), wanted, rtol=1e-10, atol=1e-10)
