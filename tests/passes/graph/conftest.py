"""A small captured model for the tests of graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from afm_fx.program import capture


class Deep(nn.Module):
    """A Linear inside a child, a buffer, and a table that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleDict({"first": nn.Linear(4, 3)})
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.tower["first"](x)).relu()


@pytest.fixture
def module() -> GraphModule:
    return capture(Deep().eval(), torch.randn(3, 4)).graph_module
