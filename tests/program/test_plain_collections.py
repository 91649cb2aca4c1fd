"""Padded ids give the rows that ``nn.EmbeddingBag`` pools from ragged lists, empty ones included."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.errors import BatchError, ModelError
from afm_fx.program.plain_collections import PaddedRows, Padding, PlainBags, PlainEmbeddings, padded
from tests.program.ragged import Lists, Ragged, draw

ROWS, WIDTH = 7, 6
COUNTS = {
    "one": torch.tensor([2, 0, 3, 1, 1, 4, 2]),
    "two": torch.tensor([0, 0, 1, 3, 2, 0, 1]),
    "always": torch.ones(ROWS, dtype=torch.long),
    "pair": torch.full((ROWS,), 2),
}
SIZES = {"one": 30, "two": 30, "always": 20, "pair": 25}


@dataclass
class Config:
    """What a collection knows of one table."""

    name: str
    feature_names: list[str]
    embedding_dim: int = WIDTH


class Collection(nn.Module):
    """The parts of an ``EmbeddingBagCollection`` that are read; ``one`` and ``two`` share a table."""

    def __init__(self, *, weighted: bool = False) -> None:
        super().__init__()
        self.configs = [Config("shared", ["two", "one"]), Config("single", ["always"]), Config("mean", ["pair", "one"])]
        rows, modes = {"shared": 30, "single": 20, "mean": 30}, {"mean": "sum" if weighted else "mean"}
        self.embedding_bags = nn.ModuleDict(
            {
                each.name: nn.EmbeddingBag(
                    rows[each.name], WIDTH, mode=modes.get(each.name, "sum"), include_last_offset=True
                )
                for each in self.configs
            }
        )
        self.weighted = weighted
        self._embedding_names = ["two", "one@shared", "always", "pair", "one@mean"]

    def embedding_bag_configs(self) -> list[Config]:
        return self.configs

    def is_weighted(self) -> bool:
        return self.weighted

    def forward(self, lists: dict[str, Lists]) -> Tensor:
        """The pooled rows as TorchRec computes them."""
        pooled = [
            self.embedding_bags[each.name](
                lists[name].ids, lists[name].offsets(), lists[name].scores if self.weighted else None
            )
            for each in self.configs
            for name in each.feature_names
        ]
        return torch.cat(pooled, dim=1)


@dataclass
class Keyed:
    """What a collection returns."""

    keys: list[str]
    length_per_key: list[int]
    values: Tensor = field(repr=False)


def paddings(*, weighted: bool = False) -> dict[str, Padding]:
    lengths = {"one": 5, "two": 3, "always": 1, "pair": 2}
    ragged = {"one", "two"}
    return {name: Padding(length, name in ragged, weighted) for name, length in lengths.items()}


@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_rows_are_those_of_ragged_bags_in_the_collections_order(weighted: bool) -> None:
    collection, lists = Collection(weighted=weighted), draw(SIZES, COUNTS, weighted=weighted)
    plain = PlainBags(collection, paddings(weighted=weighted), Keyed)
    found = plain(padded(Ragged(lists), plain._paddings))
    assert found.keys == ["two", "one@shared", "always", "pair", "one@mean"]
    assert found.length_per_key == [WIDTH] * 5
    torch.testing.assert_close(found.values, collection(lists), rtol=1e-6, atol=1e-6)
    assert found.values[1, : 2 * WIDTH].abs().max() == 0  # both lists of this row are empty
    assert list(plain.parameters()) == list(collection.parameters())


class Scorer(nn.Module):
    """A model whose features come from a collection."""

    def __init__(self, bags: PlainBags) -> None:
        super().__init__()
        self.bags, self.mlp = bags, nn.Sequential(nn.Linear(5 * WIDTH, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.mlp(self.bags(features).values).squeeze(1)


def test_the_whole_flow_takes_padded_bags(tmp_path: Path) -> None:
    known = paddings()
    model = Scorer(PlainBags(Collection(), known, Keyed)).eval()

    def batch(rows: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        counts = {
            name: torch.randint(0, each.length + 1, (rows,), generator=generator)
            if each.ragged
            else torch.full((rows,), each.length)
            for name, each in known.items()
        }
        return padded(Ragged(draw(SIZES, counts, seed=seed)), known)

    program = afm_fx.capture(model, batch(6, 0))
    batches = [batch(100, seed) for seed in range(1, 4)]
    torch.testing.assert_close(program.run(batches[0]), model(batches[0]).detach(), rtol=0, atol=0)
    exact = afm_fx.compress(program.to(torch.float64), batches, afm_fx.FullRank())
    reference = program.to(torch.float64).run(batches[0])
    assert float((exact.program.run(batches[0]) - reference).abs().max()) < 1e-10 * float(reference.abs().max())
    small = afm_fx.compress(program, batches, afm_fx.Fixed(embedding=2, linear=4), basis="afm")
    assert [site.rank for site in small.plan.sites][:3] == [2, 2, 2]
    pytest.importorskip("onnxruntime")
    report = afm_fx.export_onnx(small.program, tmp_path / "model.onnx")
    assert report.max_abs_difference is not None
    assert report.max_abs_difference < 1e-5


def test_a_list_that_does_not_fit_its_padding_is_refused_with_its_row() -> None:
    lists = Ragged(draw(SIZES, COUNTS))
    with pytest.raises(
        BatchError, match=r"row 5 of feature 'one' has 4 ids, the plain model takes at most 3.*max_lengths"
    ):
        padded(lists, {"one": Padding(3, ragged=True)})
    with pytest.raises(BatchError, match=r"row 0 of feature 'one' has 2 ids, the plain model takes exactly 4"):
        padded(lists, {"one": Padding(4, ragged=False)})
    with pytest.raises(BatchError, match=r"feature 'two' has no weights"):
        padded(lists, {"two": Padding(3, ragged=True, weighted=True)})


def test_rows_of_an_embedding_collection_are_padded() -> None:
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.ModuleDict({"shared": nn.Embedding(30, WIDTH)})

        def embedding_configs(self) -> list[Config]:
            return [Config("shared", ["two", "pair"])]

        def embedding_names_by_table(self) -> list[list[str]]:
            return [["two", "pair"]]

    collection, lists = Embeddings(), draw(SIZES, COUNTS)
    known = {"two": Padding(4, ragged=True), "pair": Padding(2, ragged=False)}
    found = PlainEmbeddings(collection, known)(padded(Ragged(lists), known))
    table = next(collection.embeddings.parameters())
    rows = found["two"].to_padded_dense(5, padding_value=-1.0)
    assert torch.equal(rows[3, :3], table[lists["two"].ids[1:4]])
    assert bool((rows[3, 3:] == -1).all())
    assert bool((rows[0] == -1).all())
    assert torch.equal(found["two"].to_padded_dense(2)[3], table[lists["two"].ids[1:3]])
    assert torch.equal(found["pair"].values(), table[lists["pair"].ids])
    assert found["pair"].lengths().tolist() == COUNTS["pair"].tolist()
    assert torch.equal(found["two"].lengths(), COUNTS["two"])
    with pytest.raises(ModelError, match=r"to_padded_dense"):
        found["two"].values()


def test_rows_of_half_precision_tables_come_as_float32() -> None:
    collection = Collection().half()
    plain = PlainBags(collection, paddings(), Keyed)
    lists = draw(SIZES, COUNTS)
    found = plain(padded(Ragged(lists), plain._paddings)).values
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, collection(lists).float(), rtol=1e-2, atol=1e-2)
    assert isinstance(PaddedRows(found.unsqueeze(1), None).values(), Tensor)
