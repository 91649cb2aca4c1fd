"""Adds up the statistics of the processes of a group: ``+`` along a binary tree, and the total is sent to all.

A group of ``n`` takes ``log2 n`` rounds. In round ``k`` every process whose number is an odd multiple of ``2^k`` gives
what it has to the one ``2^k`` before it, so that the total lies in process 0, added up in the same order always.
Counts of lookups may be large, and are plain sums: they are summed table by table where they lie.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch.distributed as dist

from afm_fx.calibration.statistics import Statistics, joined_shares
from afm_fx.calibration.traffic import Traffic
from afm_fx.io import Group, add_up, agreed, check_alike, died, rank_and_size


def all_reduced(own: Statistics, group: Group) -> Statistics:
    """The statistics of the rows of all processes, the same in each; all must call.

    Raises:
        CalibrationError: they are of different models or options, or hold a share twice.
        OtherProcessError: a process died.
    """
    # All processes find out together whether they can be added: one that raised alone would leave the others waiting.
    told = agreed(group, None, (own.layout(), own.shares))
    check_alike([layout for layout, _ in told])
    functools.reduce(joined_shares, (shares for _, shares in told))
    total = _summed(replace(own, traffic={}), group)
    return replace(total, traffic=_traffic(own.traffic, group))


def _summed(own: Statistics, group: Group) -> Statistics:
    rank, world = rank_and_size(group)
    total = [own]
    try:
        for step in (1 << level for level in range((world - 1).bit_length())):
            if rank % (2 * step) == step:
                dist.send_object_list(total, group=group, group_dst=rank - step)
                break
            if rank + step < world:
                received = [own]  # a place for what comes
                dist.recv_object_list(received, group=group, group_src=rank + step)
                total = [total[0] + received[0]]
        dist.broadcast_object_list(total, group=group, group_src=0)
    except RuntimeError as error:  # gloo and nccl tell of a dead process in this way
        raise died(error) from error
    return total[0]


def _traffic(own: Mapping[str, Traffic], group: Group) -> dict[str, Traffic]:
    """Table by table, in the order of the names; tables of one joint table share their counts."""
    made: dict[int, Traffic] = {}
    for name in sorted(own):
        key = id(own[name])
        if key not in made:
            made[key] = Traffic(add_up(own[name].counts.clone(), group), own[name].pooled)
    return {name: made[id(traffic)] for name, traffic in own.items()}
