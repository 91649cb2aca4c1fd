"""Moments of a table's rows under weights: what calibration would find, from how often each row is looked up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from afm_fx.moments import Moments
from passes.table_codes import ROWS_PER_BLOCK


def table_moments(tables: Sequence[Tensor], weights: Tensor) -> Moments:
    """The moments of a table's rows, row ``v`` counted ``w_v`` times.

    With the counts of some traffic as weights these are the moments of the looked up features, exactly: they depend
    on which rows were looked up, not on the order or on the company.

    Args:
        tables: [V, n_i] each, whose features side by side are the site's; they are not copied.
        weights: [V], not negative.
    """
    total = Moments.empty(sum(int(table.shape[1]) for table in tables))
    for start in range(0, weights.shape[0], ROWS_PER_BLOCK):
        given = weights[start : start + ROWS_PER_BLOCK].to(torch.float64)
        taken = given.nonzero().flatten()
        if not len(taken):
            continue
        parts = [table.detach()[start + taken.to(table.device)].to("cpu", torch.float64) for table in tables]
        rows, each = torch.cat(parts, dim=1), given[taken]
        count = each.sum()
        mean = each @ rows / count
        centred = rows - mean
        total = total + Moments(float(count), mean, centred.mT @ (centred * each[:, None]))
    return total
