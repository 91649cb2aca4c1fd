"""Rows kept back: none is lost, none is in both."""

from __future__ import annotations

import torch

import afm_fx
from afm_fx.data.held_out import EVERY, HoldOut
from tests.graphs import Tower, tower_batch


def program() -> afm_fx.Program:
    return afm_fx.capture(Tower(), tower_batch(4))


def test_every_row_is_in_exactly_one_part() -> None:
    batches = [tower_batch(rows) for rows in (7, 1, 30, 2)]
    held = HoldOut(program(), iter(batches), 100)
    rest = torch.cat([dense for _, dense in held])
    back = torch.cat([dense for _, dense in held.rows])
    every = torch.cat([dense for _, dense in batches])
    assert len(back) == len(every) // EVERY
    assert sorted(torch.cat([rest, back])[:, 0].tolist()) == sorted(every[:, 0].tolist())


def test_no_more_rows_are_kept_back_than_asked_for_and_the_rest_is_untouched() -> None:
    batches = [tower_batch(50) for _ in range(3)]
    held = HoldOut(program(), batches, 4)
    rest = list(held)
    assert sum(len(dense) for _, dense in held.rows) == 4
    assert rest[1] is batches[1]
    assert len(held) == 3


def test_dict_and_one_tensor_batches_keep_their_form() -> None:
    ids, dense = tower_batch(20)
    by_name = HoldOut(afm_fx.capture(Tower(), {"ids": ids, "dense": dense}), [{"ids": ids, "dense": dense}], 10)
    assert set(next(iter(by_name))) == {"ids", "dense"}
    assert set(by_name.rows[0]) == {"ids", "dense"}
    single = HoldOut(afm_fx.capture(torch.nn.Linear(3, 1), torch.randn(4, 3)), [torch.randn(20, 3)], 10)
    assert [part.shape for part in next(iter(single))] == [(16, 3)]


def test_a_model_of_one_dict_gets_a_dict() -> None:
    class OfOneDict(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = Tower()

        def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.tower(features["ids"], features["dense"])

    batch = dict(zip(("ids", "dense"), tower_batch(20), strict=True))
    program = afm_fx.capture(OfOneDict(), batch)
    held = HoldOut(program, [batch], 10)
    (rest,) = held
    for inputs, rows in ((rest, 16), (held.rows[0], 4)):
        (features,) = inputs
        assert {name: len(each) for name, each in features.items()} == {"ids": rows, "dense": rows}
        assert program.run(inputs).shape == (rows, 1)


def test_a_batch_that_does_not_fit_is_passed_on_for_others_to_name() -> None:
    bad = (torch.zeros(3, 9),)
    assert list(HoldOut(program(), [bad], 10)) == [bad]
