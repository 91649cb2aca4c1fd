"""A model with every kind of table, its plan and its checkpoint, for tests of what applies plans to files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import afm_fx
from tests.wide_and_deep import WideAndDeep, rows_of_ids

LARGE = 160
"""Bytes from which on tables of these tests are streamed: all of them."""


class EveryTable(nn.Module):
    """Tables that are encoded, constant, kept, refused (max_norm) and half as precise; a padding row; an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded, self.constant, self.kept = nn.Embedding(45, 6), nn.Embedding(40, 4), nn.Embedding(40, 5)
        self.refused, self.padded = nn.Embedding(40, 4, max_norm=1.0), nn.Embedding(40, 6, padding_idx=0)
        self.scale: Tensor
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 25))
        self.first, self.last = nn.Linear(25, 24), nn.Linear(24, 1)

    def forward(self, ids: Tensor) -> Tensor:
        tables = (self.encoded, self.constant, self.kept, self.refused, self.padded)
        features = torch.cat([table(ids) for table in tables], dim=1) * self.scale
        return torch.sigmoid(self.last(torch.relu(self.first(features)))).squeeze(1)


def ids_of(rows: int, seed: int = 0) -> Tensor:
    """Ids [rows] of every table."""
    return torch.randint(0, 40, (rows,), generator=torch.Generator().manual_seed(seed))


def every_table() -> tuple[nn.Module, tuple[Tensor]]:
    """The factory of :class:`EveryTable`, as a user writes one."""
    torch.manual_seed(3)
    return EveryTable().eval(), (ids_of(4),)


def every_table_plan(program: afm_fx.Program) -> afm_fx.Plan:
    """A plan that does something else to every table and factors a Linear."""
    statistics = afm_fx.calibrate(program, [ids_of(400, seed) for seed in range(2)])
    policy = afm_fx.Fixed(embedding=2, linear=4, overrides={"constant": 0, "kept": None})
    return afm_fx.make_plan(program, statistics, policy, basis="afm")


def wide_and_deep_model() -> tuple[nn.Module, tuple[Tensor]]:
    """The factory of a model whose embeddings and weights are looked up by the same ids."""
    torch.manual_seed(5)
    return WideAndDeep().eval(), (rows_of_ids(4),)


def wide_and_deep_plan(program: afm_fx.Program) -> afm_fx.Plan:
    """A plan with joint tables and hidden units that leave."""
    statistics = afm_fx.calibrate(program, [rows_of_ids(500)], sensitivity_rows=300)
    return afm_fx.make_plan(program, statistics, afm_fx.Budget(parameters=0.4), held_out=[rows_of_ids(100, seed=9)])


def save_sharded(state: dict[str, Tensor], folder: Path, shards: int = 3) -> Path:
    """Writes a state dict as several files with an index, as the common hubs have them."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    names = list(state)
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name].contiguous() for name in names[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index
