"""A DeepFM in the shape that the Criteo display-advertising data gives it, and traffic for it.

Speed does not depend on what the weights say, so nothing is trained; but the tables have a planted, decaying spectrum,
as trained ones do, so that the pass meets low-rank features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common.deepctr import import_deepctr

_ZIPF_EXPONENT = 1.1


@dataclass(frozen=True)
class CriteoShape:
    """Sizes of the model.

    Attributes:
        total_rows: table rows over all fields.
        sparse_fields: number of id fields.
        dense_fields: number of dense features.
        width: width of the embedding tables.
        hidden: widths of the MLP's hidden layers.
        largest_over_smallest: ratio of the rows of the largest to the smallest table; 1 for tables of equal size.
        spectrum_decay: each further direction of a table has this fraction of the one before it.
    """

    total_rows: int = 1_000_000
    sparse_fields: int = 26
    dense_fields: int = 13
    width: int = 16
    hidden: tuple[int, ...] = (400, 400, 400)
    largest_over_smallest: float = 1e5
    spectrum_decay: float = 0.5

    @property
    def table_rows(self) -> tuple[int, ...]:
        """Rows of each table: geometric from few to many, as in click logs, and ``total_rows`` in all."""
        sizes = np.geomspace(1.0, self.largest_over_smallest, self.sparse_fields)
        free = self.total_rows - 2 * self.sparse_fields
        if free < 0:
            raise ValueError(f"{self.sparse_fields} tables of at least 2 rows need more than {self.total_rows} rows")
        rows = 2 + np.floor(free * sizes / sizes.sum()).astype(int)
        rows[-1] += self.total_rows - rows.sum()
        return tuple(int(count) for count in rows)

    def batch(self, rows: int, seed: int) -> Tensor:
        """Traffic: float32 [rows, sparse fields + dense fields]; ids by a Zipf law, dense features normal."""
        generator = np.random.default_rng(seed)
        columns = []
        for count in self.table_rows:
            weights = np.arange(1, count + 1, dtype=np.float64) ** -_ZIPF_EXPONENT
            shares = np.cumsum(weights) / weights.sum()
            columns.append(np.minimum(np.searchsorted(shares, generator.random(rows)), count - 1))
        ids = np.stack(columns, axis=1)
        dense = generator.standard_normal((rows, self.dense_fields))
        return torch.from_numpy(np.concatenate([ids, dense], axis=1).astype(np.float32))

    def deepfm(self, seed: int) -> nn.Module:
        """deepctr-torch's DeepFM of these sizes, in eval mode."""
        deepctr = import_deepctr()
        columns = [
            deepctr.inputs.SparseFeat(f"C{field}", rows, embedding_dim=self.width)
            for field, rows in enumerate(self.table_rows, start=1)
        ] + [deepctr.inputs.DenseFeat(f"I{field}", 1) for field in range(1, self.dense_fields + 1)]
        model: nn.Module = deepctr.models.DeepFM(
            columns, columns, dnn_hidden_units=self.hidden, device="cpu", seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for table in model.embedding_dict.children():  # type: ignore[union-attr]
                plant_spectrum(table.weight, self.spectrum_decay, generator)  # type: ignore[arg-type]
            for name, weight in model.named_parameters():
                if name.startswith("dnn") and weight.dim() == 2:
                    nn.init.kaiming_normal_(weight, generator=generator)
        return model.eval()


def plant_spectrum(table: Tensor, decay: float, generator: torch.Generator, *, scale: float = 0.1) -> None:
    """Fills a table with rows whose spread falls by ``decay`` from each direction to the next.

    Args:
        table: [rows, width], overwritten block by block.
        decay: ratio of the standard deviations along consecutive directions.
        generator: source of the random numbers.
        scale: standard deviation along the first direction.
    """
    width = table.shape[1]
    directions, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    spread = scale * decay ** torch.arange(width, dtype=torch.float32)
    basis = (spread.unsqueeze(1) * directions.T).to(table.dtype)
    for block in table.split(1_000_000):
        block.copy_(torch.randn(block.shape, generator=generator) @ basis)
