from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import afm_fx
from afm_fx.errors import BatchError, FileFormatError, UserError
from afm_fx.measure.contenders import Competitor, make_contender
from afm_fx.program.input_mapping import METADATA_KEY, InputMapping
from afm_fx.runtime.artifact import mapping_of
from afm_fx.runtime.file_inputs import random_file_inputs, traffic_examples
from tests.fast_capture import fast_capture
from tests.passes.serving.test_pack_tables import SIZES, Wide, wide_inputs
from tests.zoo.entry import ZooEntry
from tests.zoo.models import captured, zoo_params
from tests.zoo.test_zoo_rewrite import FRESH_SEED, assert_batch_is_symbolic

FIELDS = len(SIZES)


class Tall(nn.Module):
    """A table whose last ids float32 cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2**24 + 3, 1)
        self.table.weight.data = torch.arange(2**24 + 3).remainder(1024).float().unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x[:, 0].long()) + x[:, 1:]


class Named(nn.Module):
    """A dict of features: a float id, a matrix of ids and features, and an integer id."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items, self.shops = nn.Embedding(5, 2), nn.Embedding(7, 2), nn.Embedding(3, 2)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        matrix = features["item and price"]
        looked_up = self.users(features["user"].long()) + self.items(matrix[:, 1].long()) + self.shops(features["shop"])
        return looked_up.sum(1) * matrix[:, 0]


def float_wide() -> tuple[afm_fx.Program, Tensor]:
    program = afm_fx.capture(Wide().eval(), wide_inputs(3)[0].float())
    return program, wide_inputs(5)[0].float()


def test_a_typed_program_takes_ids_and_features_and_equals_the_original() -> None:
    program, x = float_wide()
    typed = afm_fx.pack(program, inputs="typed").program
    batch = typed.convert_inputs(x)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "sparse": (torch.int64, (5, FIELDS)),
        "dense": (torch.float32, (5, 3)),
    }
    torch.testing.assert_close(typed.run(batch), program.run(x), rtol=1e-5, atol=1e-5)
    assert typed.input_names == ("sparse", "dense")


EXPORTED = {"DeepFM", "DIN", "VarLen-masked", "AutoInt", "FiBiNET", "MMOE", "AFM"}
"""Models of the zoo whose typed programs are exported too: tables, histories, masks, attention, gates, towers."""


@pytest.mark.parametrize("entry", zoo_params())
def test_typed_programs_of_the_zoo_equal_the_original(entry: ZooEntry) -> None:
    exact = captured(entry.name)[1].to(torch.float64)
    typed_exact = afm_fx.pack(exact, inputs="typed").program
    if typed_exact.original_inputs is None:
        assert not entry.needs_deepctr
        assert typed_exact.input_names == exact.input_names
        return
    assert_batch_is_symbolic(typed_exact)
    for rows in (2, 9):
        inputs = entry.inputs(rows, FRESH_SEED)
        leaves = zip(
            pytree.tree_leaves(typed_exact.run(typed_exact.convert_inputs(inputs))),
            pytree.tree_leaves(exact.run(inputs)),
            strict=True,
        )
        for found, expected in leaves:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entry", [each for each in zoo_params() if each.values[0].name in EXPORTED])
def test_typed_programs_of_the_zoo_export(entry: ZooEntry, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    typed = afm_fx.pack(captured(entry.name)[1], inputs="typed").program
    assert typed.original_inputs is not None
    report = afm_fx.export_onnx(typed, tmp_path / "typed.onnx")
    assert report.max_abs_difference is not None
    assert report.max_abs_difference <= 1e-5
    model = onnx.load(report.path)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert kinds == {"sparse": onnx.TensorProto.INT64, "dense": onnx.TensorProto.FLOAT}
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input} == {"batch"}
    assert mapping_of(model) == typed.original_inputs.mapping


def test_ids_that_collide_in_the_original_give_different_rows() -> None:
    with pytest.warns(UserWarning, match="COLLIDE"):
        program = afm_fx.capture(Tall(), torch.zeros(2, 2))
    typed = afm_fx.pack(program, inputs="typed").program
    assert program.warnings
    assert typed.warnings == ()
    ids = torch.tensor([[2**24 + 1, 0], [2**24, 0]])
    collided = program.run(ids.float())
    assert collided[0] == collided[1]
    for exact in (ids, ids.double()):
        assert typed.run(typed.convert_inputs(exact)).flatten().tolist() == [1.0, 0.0]
    both = torch.tensor([[2**24 + 1, 0], [2**24 + 2, 0]])
    assert typed.run(typed.convert_inputs(both)).flatten().tolist() == [1.0, 2.0]
    assert typed.run({"sparse": both[:, :1], "dense": torch.zeros(2, 1)}).flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (2.5, r"row 3: 2\.5 of input 'x', column 1 is no whole number"),
        (float("nan"), "row 3: nan of input 'x', column 1 is no whole number"),
        (-1.0, r"row 3: id -1 of input 'x', column 1 is outside table '(tables|weights)\.1' \(ids 0 to 10\)"),
        (11.0, r"row 3: id 11 of input 'x', column 1 is outside table"),
    ],
)
def test_what_is_no_valid_id_is_refused_with_its_row_and_column(pack: bool, bad: float, reason: str) -> None:
    program, x = float_wide()
    typed = afm_fx.pack(program, inputs="typed").program if pack else afm_fx.split_inputs(program)
    x[3, 1] = bad
    with pytest.raises(BatchError, match=reason):
        typed.convert_inputs(x)


def test_running_a_typed_program_refuses_ids_outside_their_own_table() -> None:
    program, x = float_wide()
    typed = afm_fx.pack(program, inputs="typed").program
    batch = typed.convert_inputs(x)
    batch["sparse"][2, 1] = SIZES[1]
    with pytest.raises(BatchError, match=r"row 2: id 11 of input 'sparse', column 1 is outside table 'tables\.1'"):
        typed.run(batch)


def test_bounds_follow_columns_that_are_in_another_order() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Embedding(4, 2), nn.Embedding(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return (self.other(x[:, 2].long()) + self.one(x[:, 0].long())).sum(1) + x[:, 1]

    program = afm_fx.capture(Swapped(), torch.zeros(3, 3))
    typed = afm_fx.pack(program, inputs="typed").program
    assert typed.original_inputs is not None
    ranges = typed.original_inputs.mapping.id_ranges("x")
    assert ranges == {0: (0, 3), 2: (0, 8)}
    for column, (_, largest) in ranges.items():
        x = torch.zeros(2, 3)
        x[1, column] = largest
        typed.run(typed.convert_inputs(x))
        x[1, column] = largest + 1
        with pytest.raises(BatchError, match=f"row 1: id {largest + 1} of input 'x', column {column}"):
            typed.convert_inputs(x)


def test_a_column_read_both_ways_may_hold_fractions() -> None:
    class Bucketed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x[:, 0].long()) * x

    program = afm_fx.capture(Bucketed(), torch.zeros(3, 1))
    typed = afm_fx.split_inputs(program)
    x = torch.tensor([[0.5], [2.75]])
    assert typed.convert_inputs(x)["sparse"].tolist() == [[0], [2]]
    torch.testing.assert_close(typed.run(typed.convert_inputs(x)), program.run(x))


def test_a_dict_of_features_becomes_a_flat_dict_and_other_inputs_stay() -> None:
    example = {
        "user": torch.tensor([1.0, 4.0]),
        "item and price": torch.tensor([[0.5, 6.0], [1.5, 0.0]]),
        "shop": torch.tensor([2, 0]),
    }
    model = Named()
    program = afm_fx.capture(model, example)
    typed = afm_fx.split_inputs(program)
    batch = typed.convert_inputs(example)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "user_sparse": torch.int64,
        "features_item_and_price_sparse": torch.int64,
        "features_item_and_price_dense": torch.float32,
        "shop": torch.int64,
    }
    torch.testing.assert_close(typed.run(batch), model(example))
    with pytest.raises(BatchError, match=r"Program\.convert_inputs"):
        typed.run(example)


def test_programs_without_float_ids_are_left_as_they_are() -> None:
    program = afm_fx.capture(nn.Sequential(nn.Linear(3, 2)), torch.rand(4, 3))
    assert afm_fx.split_inputs(program) is program
    with pytest.raises(BatchError, match="nothing to convert"):
        program.convert_inputs(torch.rand(4, 3))
    typed = afm_fx.split_inputs(float_wide()[0])
    assert afm_fx.split_inputs(typed) is typed


def test_unknown_inputs_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="original, typed"):
        afm_fx.pack(float_wide()[0], inputs="integers")


def test_a_typed_program_can_be_calibrated_on_typed_batches_and_names_the_converter_for_others() -> None:
    program, x = float_wide()
    typed = afm_fx.split_inputs(program)
    seen = afm_fx.calibrate(typed, [typed.convert_inputs(x)])
    expected = afm_fx.calibrate(program, [x])
    assert set(seen.moments) == set(expected.moments)
    for name, moments in seen.moments.items():
        torch.testing.assert_close(moments.mean, expected.moments[name].mean)
    with pytest.raises(BatchError, match=r"typed inputs \(sparse, dense\), Program\.convert_inputs"):
        afm_fx.calibrate(typed, [x])


@pytest.mark.parametrize("pack", [True, False])
def test_compress_gives_typed_programs_packed_or_not(pack: bool) -> None:
    program, x = float_wide()
    policy = afm_fx.Fixed(embedding=2, linear=None)
    plain = afm_fx.compress(program, [x], policy, pack=pack).program
    typed = afm_fx.compress(program, [x], policy, pack=pack, inputs="typed").program
    torch.testing.assert_close(typed.run(typed.convert_inputs(x)), plain.run(x))


def test_the_mapping_in_the_file_is_enough_to_convert_a_batch(tmp_path: Path) -> None:
    program, x = float_wide()
    typed = afm_fx.pack(program, inputs="typed").program
    path = afm_fx.export_onnx(typed, tmp_path / "typed.onnx").path
    note = json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}[METADATA_KEY])
    (original,) = note["originals"]
    assert (original["name"], original["dtype"], original["shape"]) == ("x", "float32", [FIELDS + 3])
    by_hand = {each["name"]: x[:, each["columns"]].numpy().astype(each["dtype"]) for each in note["inputs"]}
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    torch.testing.assert_close(torch.tensor(session.run(None, by_hand)[0]), program.run(x), rtol=1e-5, atol=1e-5)
    bounds = {(each["input"], each["column"], each["low"], each["high"]) for each in note["bounds"]}
    assert bounds == {(note["inputs"][0]["name"], place, 0, size) for place, size in enumerate(SIZES)}


def test_a_file_in_float64_says_so_in_its_note(tmp_path: Path) -> None:
    typed = afm_fx.pack(float_wide()[0].to(torch.float64), inputs="typed").program
    mapping = mapping_of(onnx.load(afm_fx.export_onnx(typed, tmp_path / "typed.onnx").path))
    assert mapping is not None
    assert [each.dtype for each in mapping.inputs] == ["int64", "float64"]
    assert typed.file_mapping() == mapping


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 3, "originals": []}'])
def test_a_damaged_note_is_told(text: str) -> None:
    with pytest.raises(FileFormatError, match="note on typed inputs"):
        InputMapping.from_json(text)


def test_typed_and_original_contenders_take_the_same_traffic(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    program, x = float_wide()
    typed = afm_fx.pack(program, inputs="typed").program
    entrants: dict[str, Competitor] = {
        "dense": afm_fx.export_onnx(program, tmp_path / "dense.onnx").path,
        "typed": afm_fx.export_onnx(typed, tmp_path / "typed.onnx").path,
        "typed program": typed,
    }
    prepared = {name: make_contender(name, each, 1).prepare(x) for name, each in entrants.items()}
    expected = program.run(x)
    for call in prepared.values():
        found = call()
        found = torch.tensor(found[0]) if isinstance(found, list) else found
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    own = typed.convert_inputs(x)
    for batch in (own, tuple(own.values())):
        (found,) = make_contender("typed", entrants["typed"], 1).prepare(batch)()
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-5)
    x[1, 0] = 0.5
    with pytest.raises(BatchError, match=r"contender 'typed' does not take this batch: row 1: .* column 0 is"):
        make_contender("typed", entrants["typed"], 1).prepare(x)
    settings = {"batch_sizes": [2], "seconds": 0.01, "rounds": 1}
    result = afm_fx.benchmark(entrants, wide_inputs(4)[0].float(), **settings)  # type: ignore[arg-type]
    assert [each.contender for each in result.timings] == list(entrants)


def test_traffic_for_typed_files_is_that_of_the_original_with_whole_ids(tmp_path: Path) -> None:
    program, _ = float_wide()
    dense = afm_fx.export_onnx(program, tmp_path / "dense.onnx").path
    typed = afm_fx.export_onnx(afm_fx.pack(program, inputs="typed").program, tmp_path / "typed.onnx").path
    examples, mapping = traffic_examples([dense, typed])
    assert [(name, example.dtype) for name, example in examples] == [("x", torch.float32)]
    drawn = random_file_inputs(examples, 50, mapping=mapping)["x"]
    for field, size in enumerate(SIZES):
        assert set(drawn[:, field].tolist()) <= set(range(size))
        assert len(drawn[:, field].unique()) > size / 3
    assert len(drawn[:, FIELDS:].unique()) > 50
    (only_typed, _) = traffic_examples([typed])
    assert only_typed[0][1].dtype is torch.float64  # has room for every id
    (columns, none) = traffic_examples([typed], ["sparse", "dense", "label"])
    assert [name for name, _ in columns] == ["sparse", "dense"]
    assert none is None
    assert traffic_examples([dense])[1] is None


def test_programs_of_a_fixed_batch_and_of_plain_graphs_are_split_too() -> None:
    x = wide_inputs(3)[0]
    model = Wide().double().eval()
    for program in (afm_fx.capture(model, x, dynamic_batch=False), fast_capture(model, (x,))):
        typed = afm_fx.pack(program, inputs="typed").program
        assert typed.input_names == ("sparse", "dense")
        found, expected = pytree.tree_leaves(typed.run(typed.convert_inputs(x))), pytree.tree_leaves(program.run(x))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_typed_program_can_be_packed_and_converted_to_another_format_later() -> None:
    program, x = float_wide()
    typed = afm_fx.split_inputs(program)
    packed = afm_fx.pack(typed).program.to(torch.float64)
    assert packed.original_inputs is typed.original_inputs
    batch = packed.convert_inputs(x.double())
    assert batch["dense"].dtype is torch.float64
    torch.testing.assert_close(packed.run(batch).float(), program.run(x), rtol=1e-5, atol=1e-5)
    batch["sparse"][0, 0] = SIZES[0]
    with pytest.raises(BatchError, match="row 0: id 7 of input 'sparse', column 0"):
        packed.run(batch)
