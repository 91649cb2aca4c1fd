"""The picture: equal ways share a box, moves lie in arrows, large graphs stay readable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.report.picture import Box, Picture, picture_of
from afm_fx.report.picture_svg import short_operator
from tests.graphs import ROWS, Tower, tower_batch


def picture(model: nn.Module, inputs: Tensor | tuple[Tensor, ...], **options: int) -> Picture:
    return picture_of(afm_fx.explain(model, inputs), **options)


def with_site(drawn: Picture, site: str) -> Box:
    (box,) = [box for box in drawn.boxes if site in [each.name for each in box.sites]]
    return box


class Fields(nn.Module):
    """Four tables of one width: two are multiplied, all are concatenated into an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, 6) for _ in range(4))
        self.first, self.last = nn.Linear(24, 8), nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = [table(ids[:, field]) for field, table in enumerate(self.tables)]
        deep = self.last(torch.relu(self.first(torch.cat(rows, 1))))
        return deep + torch.tanh(rows[0] * rows[1]).sum(1, keepdim=True)


def test_tables_that_go_the_same_way_share_a_box() -> None:
    drawn = picture(Fields(), torch.zeros(3, 4, dtype=torch.int64))
    tables = [sorted(site.name for site in box.sites) for box in drawn.boxes if box.role == "embedding"]
    assert tables == [["tables.0", "tables.1"], ["tables.2", "tables.3"]]
    assert any("drawn as one" in sentence for sentence in drawn.folded)


def test_a_restore_stands_between_codes_and_what_needs_features() -> None:
    drawn = picture(Fields(), torch.zeros(3, 4, dtype=torch.int64))
    product = next(box for box in drawn.boxes if box.flow[0].operator == "aten.mul.Tensor")
    ((start, form),) = [(start, form) for start, end, form in drawn.arrows if end == product.key]
    restore = next(box for box in drawn.boxes if box.key == start)
    assert (restore.role, form, len(restore.flow), restore.uses) == ("restore", "features", 2, 1)
    assert [ends for ends in drawn.arrows if ends[1] == restore.key] == [
        (with_site(drawn, "tables.0").key, restore.key, "codes")
    ]


def test_one_restore_serves_all_that_need_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(ROWS, 6)

        def forward(self, ids: Tensor) -> Tensor:
            features = self.table(ids)
            return torch.tanh(features) + torch.sigmoid(features)

    drawn = picture(Twice(), torch.zeros(3, dtype=torch.int64))
    (restore,) = [box for box in drawn.boxes if box.role == "restore"]
    assert restore.uses == 2


def test_tables_of_different_widths_are_different_boxes() -> None:
    drawn = picture(Tower(), tower_batch(4))
    assert [len(box.sites) for box in drawn.boxes if box.role == "embedding"] == [1, 1, 1]


def test_moves_lie_in_arrows_and_are_told() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(ROWS, 6), nn.Linear(6, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.linear(self.table(ids).unsqueeze(1).flatten(1))

    drawn = picture(Moved(), torch.zeros(3, dtype=torch.int64))
    assert (with_site(drawn, "table").key, with_site(drawn, "linear").key, "codes") in drawn.arrows
    assert drawn.folded[0].startswith("2 operators that only move codes lie in the arrows")


def test_refining_stops_where_there_would_be_too_many_boxes_and_every_site_keeps_one() -> None:
    inputs = torch.zeros(3, 4, dtype=torch.int64)
    names = {site.name for site in afm_fx.explain(Fields(), inputs).sites}
    sizes = []
    for most in (120, 9):
        drawn = picture(Fields(), inputs, most_boxes=most)
        shown = [site.name for box in drawn.boxes for site in box.sites]
        assert sorted(shown) == sorted(names)
        keys = {box.key for box in drawn.boxes}
        assert all({start, end} <= keys for start, end, _ in drawn.arrows)
        sizes.append(len(drawn.boxes))
    assert sizes[0] > 9 >= sizes[1]
    assert any("The graph is large" in sentence for sentence in drawn.folded)


def test_operators_are_called_what_users_call_them() -> None:
    assert short_operator("aten.sum.dim_IntList") == "sum"
    assert short_operator("aten._native_batch_norm_legit_no_training") == "batch_norm"
    assert short_operator("shop.hash.default") == "shop.hash.default"
