"""The structure that the AFM authors write by hand for DeepFM, as one plain module.

Every table holds codes of width r. The MLP reads the codes themselves: its first layer has absorbed the decoders. The
factorization machine needs features of the full width, so that one einsum restores them all before it. Deeper MLP
layers are two factors each.

Reference: Yu et al., "Atomic Feature Mimicking for Click-through Rate Prediction", KDD 2024 (arXiv 2405.18146).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AuthorsDeepFM(nn.Module):
    """DeepFM with low-rank tables and two-factor MLP layers.

    Args:
        table_rows: rows of each field's table.
        dense_fields: number of dense features.
        code_width: width r of the stored codes.
        width: width n of the restored features.
        hidden: widths of the MLP's hidden layers.
        ranks: inner width of each hidden layer's two factors, None for one plain layer.
    """

    def __init__(
        self,
        table_rows: Sequence[int],
        dense_fields: int,
        *,
        code_width: int,
        width: int,
        hidden: Sequence[int],
        ranks: Sequence[int | None],
    ) -> None:
        super().__init__()
        if len(ranks) != len(hidden):
            raise ValueError(f"{len(hidden)} hidden layers need {len(hidden)} ranks, got {len(ranks)}")
        fields = len(table_rows)
        self.fields = fields
        self.codes = nn.ModuleList(nn.Embedding(rows, code_width) for rows in table_rows)
        self.decoder = nn.Parameter(torch.randn(fields, code_width, width) * width**-0.5)
        self.offset = nn.Parameter(torch.randn(fields, width) * 0.1)
        self.linear_terms = nn.ModuleList(nn.Embedding(rows, 1) for rows in table_rows)
        self.dense_term = nn.Linear(dense_fields, 1)
        layers: list[nn.Module] = []
        given = fields * code_width + dense_fields
        for units, rank in zip(hidden, ranks, strict=True):
            if rank is None:
                layers.append(nn.Linear(given, units))
            else:
                layers += [nn.Linear(given, rank, bias=False), nn.Linear(rank, units)]
            layers.append(nn.ReLU())
            given = units
        self.mlp = nn.Sequential(*layers, nn.Linear(given, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Predicts click probabilities.

        Args:
            x: [batch, fields + dense fields] float; ids first.

        Returns:
            [batch, 1].
        """
        ids, dense = x[:, : self.fields].long(), x[:, self.fields :]
        codes = torch.stack([table(ids[:, field]) for field, table in enumerate(self.codes)], dim=1)
        features = torch.einsum("bfr,frn->bfn", codes, self.decoder) + self.offset
        interactions = 0.5 * (features.sum(1).square() - features.square().sum(1)).sum(1, keepdim=True)
        terms = torch.cat([table(ids[:, field]) for field, table in enumerate(self.linear_terms)], dim=1)
        linear = terms.sum(1, keepdim=True) + self.dense_term(dense)
        deep = self.mlp(torch.cat([codes.flatten(1), dense], dim=1))
        return torch.sigmoid(linear + interactions + deep)
