from __future__ import annotations

import torch
from torch import Tensor, nn

from afm_fx.program.capture import capture
from passes.graph import aten
from tests.graphs import node_of


def test_computing_values_again_never_fixes_the_batch_to_the_examples():
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pad(x.unsqueeze(1), (0, 0, 1, 1)).relu()

    program = capture(Padded(), torch.randn(6, 4, 4))
    converted = program.to(torch.float64)
    for each in (program, converted):
        assert not str(each.placeholders()[0].meta["val"].shape[0]).isdigit()
        assert not str(node_of(each.graph_module, aten.relu.default).meta["val"].shape[0]).isdigit()
