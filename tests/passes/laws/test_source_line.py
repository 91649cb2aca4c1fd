from __future__ import annotations

from pathlib import Path

import pytest
import torch

from passes.laws.verdicts import source_line

TORCH_FRAME = (
    f'  File "{Path(torch.__file__).parent}/nn/modules/linear.py", line 134, in forward\n    return F.linear()'
)
MADE_FRAME = '  File "<eval_with_key>.11", line 6, in forward\n    add = torch.ops.aten.add.Tensor(row, 1)'
USER_FRAME = '  File "/home/someone/shop/models.py", line 12, in forward\n    return self.first(row)'
OTHER_FRAME = '  File "/home/someone/torch_models.py", line 7, in forward\n    x = self.body(row)'


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        (f"{USER_FRAME}\n{TORCH_FRAME}\n", "models.py:12: return self.first(row)"),
        (f"{OTHER_FRAME}\n{USER_FRAME}\n{TORCH_FRAME}\n{TORCH_FRAME}", "models.py:12: return self.first(row)"),
        (f"{TORCH_FRAME}\n{OTHER_FRAME}", "torch_models.py:7: x = self.body(row)"),
        (f"{USER_FRAME}\n{MADE_FRAME}", "models.py:12: return self.first(row)"),
        (TORCH_FRAME, "linear.py:134: return F.linear()"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_source_line_is_the_innermost_of_the_users_own(trace: str | None, expected: str) -> None:
    node = torch.fx.Graph().placeholder("row")
    node.meta["stack_trace"] = trace
    assert source_line(node) == expected
