from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import afm_fx
from afm_fx.errors import BatchError, UserError
from afm_fx.program.capture import capture
from afm_fx.program.program import Program


class Lookup(nn.Module):
    """Ids and dense features through a table, a Linear and a batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.linear = nn.Linear(7, 5)
        self.norm = nn.BatchNorm1d(5)
        self.unused = nn.Linear(100, 100)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.norm(self.linear(torch.cat([self.table(ids), dense], dim=1)))


class OneDict(nn.Module):
    """One dict of features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.linear(features["a"]) + self.linear(features["b"]).relu()


def batch(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randint(10, (rows,)), torch.randn(rows, 3)


@pytest.fixture(scope="module")
def lookup() -> tuple[Lookup, Program]:
    model = Lookup().eval()
    return model, capture(model, batch(3))


@pytest.fixture(scope="module")
def one_dict() -> tuple[OneDict, Program]:
    model = OneDict().eval()
    return model, capture(model, {"b": torch.randn(3, 4), "a": torch.randn(3, 4)})


def test_counts_cover_exactly_what_the_graph_uses(lookup):
    _, program = lookup
    parameters = 10 * 4 + 7 * 5 + 5 + 5 + 5
    assert program.parameter_count() == parameters
    assert sum(parameter.numel() for parameter in program.parameters()) == parameters
    assert program.state_bytes() == 4 * (parameters + 5 + 5)  # running mean and variance
    assert program.input_names == ("ids", "dense")


def test_run_takes_no_gradient_and_call_does(lookup):
    _, program = lookup
    assert not program.run(batch(4)).requires_grad
    assert program(*batch(4)).requires_grad


def test_to_another_dtype_converts_state_inputs_and_values_and_leaves_the_program(lookup):
    model, program = lookup
    wide = program.to(torch.float64)
    ids, dense = batch(6)
    expected = Lookup().double()
    expected.load_state_dict(model.state_dict())
    expected.eval()
    for given in (dense, dense.double()):
        found = wide.run((ids, given))
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected(ids, given.double()), rtol=1e-13, atol=1e-13)
    assert wide.state_bytes() == 2 * program.state_bytes()
    assert wide.parameter_count() == program.parameter_count()
    assert program.run((ids, dense)).dtype == torch.float32
    assert program.dtype is None
    assert model.linear.weight.dtype == torch.float32
    assert wide.graph_module.get_parameter("table.weight").data_ptr() != model.table.weight.data_ptr()
    values = [leaf for node in wide.graph_module.graph.nodes for leaf in pytree.tree_leaves(node.meta.get("val"))]
    assert {value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()} == {
        torch.float64
    }
    assert program.to(torch.float32).run((ids, dense)).equal(program.run((ids, dense)))


def test_to_converts_casts_inside_the_graph():
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.long().float() / 3)

    program = capture(Casts().eval(), torch.randn(3, 3)).to(torch.float64)
    x = torch.arange(6.0).reshape(2, 3)
    weight, bias = (program.graph_module.get_parameter(f"linear.{name}") for name in ("weight", "bias"))
    torch.testing.assert_close(program.run(x), x.double() / 3 @ weight.T + bias, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_to_an_integer_dtype_is_refused(lookup, dtype):
    with pytest.raises(BatchError, match="floating dtype"):
        lookup[1].to(dtype)


def test_a_clone_has_a_graph_of_its_own_and_shares_the_parameters(lookup):
    _, program = lookup
    clone = program.clone()
    inputs = batch(4)
    before = program.run(inputs)
    output = next(node for node in clone.graph_module.graph.nodes if node.op == "output")
    output.args = ((clone.placeholders()[1],),)
    clone.graph_module.recompile()
    assert torch.equal(program.run(inputs), before)
    assert torch.equal(clone.run(inputs), inputs[1])
    assert {id(p) for p in clone.parameters()} == {id(p) for p in program.parameters()}


def test_a_program_cannot_be_changed(lookup):
    with pytest.raises(dataclasses.FrozenInstanceError):
        lookup[1].dynamic_batch = False


def test_the_graph_module_exports_again_with_its_own_dynamic_shapes(lookup, one_dict):
    for model, program in (lookup, one_dict):
        exported = torch.export.export(
            program.graph_module,
            program.example_args,
            program.example_kwargs,
            dynamic_shapes=program.dynamic_shapes(),
        )
        inputs = batch(9) if isinstance(model, Lookup) else ({"b": torch.randn(9, 4), "a": torch.randn(9, 4)},)
        assert torch.equal(exported.module()(*inputs), model(*inputs))


IDS = torch.zeros(4, dtype=torch.int64)
DENSE = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param((IDS,), r"1 positional inputs .* takes 2", id="an input missing"),
        pytest.param(IDS, r"1 positional inputs .* takes 2", id="one tensor"),
        pytest.param({"ids": IDS}, r"0 positional inputs and keyword inputs \['ids'\]", id="keywords"),
        pytest.param((IDS, DENSE[:, :2]), r"'dense' has shape \[4, 2\].*\[batch, 3\]", id="width"),
        pytest.param((IDS[:, None], DENSE), r"'ids' has shape \[4, 1\].*\[batch\]", id="rank"),
        pytest.param((IDS.float(), DENSE), r"'ids' has dtype torch.float32.*torch.int64", id="float ids"),
        pytest.param((IDS.int(), DENSE), r"'ids' has dtype torch.int32.*torch.int64", id="int32 ids"),
        pytest.param((IDS, DENSE.double()), r"'dense' has dtype torch.float64.*torch.float32", id="double"),
        pytest.param((IDS, DENSE[:3]), r"disagree.*'ids': 4, 'dense': 3", id="rows"),
        pytest.param((IDS[:0], DENSE[:0]), r"batch is empty \(0 rows\)", id="empty"),
        pytest.param((IDS, DENSE.tolist()), "another structure", id="a list"),
        pytest.param((IDS, DENSE.numpy()), "'dense' is a ndarray, the model takes a tensor", id="an array"),
        pytest.param((IDS, "dense.npy"), "'dense' is a str", id="a string"),
        pytest.param((IDS, None), "'dense' is a NoneType", id="none"),
    ],
)
def test_a_batch_that_does_not_fit_names_the_input(lookup, inputs, message):
    with pytest.raises(BatchError, match=message):
        lookup[1].run(inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": torch.zeros(4, 4)}, r"missing \['b'\], unexpected \[\]"),
        ({"a": torch.zeros(4, 4), "B": torch.zeros(4, 4)}, r"missing \['b'\], unexpected \['B'\]"),
        ({"a": torch.zeros(4, 4), "b": torch.zeros(4, 4), "c": 1}, r"missing \[\], unexpected \['c'\]"),
        (torch.zeros(4, 4), r"batch is a Tensor, the model takes a dict with keys \['b', 'a'\]"),
        ({"a": {"b": torch.zeros(4, 4)}, "b": torch.zeros(4, 4)}, "structure|is a dict"),
    ],
)
def test_a_dict_with_wrong_keys_names_them(one_dict, inputs, message):
    with pytest.raises(BatchError, match=message):
        one_dict[1].run(inputs)


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_a_dict_fits_in_any_order_and_of_any_kind(one_dict, kind):
    model, program = one_dict
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    expected = model({"a": a, "b": b})
    assert torch.equal(program.run(kind([("a", a), ("b", b)])), expected)
    assert torch.equal(program.run(kind([("b", b), ("a", a)])), expected)
    assert torch.equal(program.run(({"a": a, "b": b},)), expected)


def test_float_ids_are_refused_also_after_a_change_of_dtype(lookup):
    ids, dense = batch(4)
    with pytest.raises(BatchError, match=r"'ids' has dtype torch\.float32"):
        lookup[1].to(torch.float64).run((ids.float(), dense))


def test_another_value_of_an_input_that_is_no_tensor_is_refused():
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float) -> Tensor:
            return x * scale

    program = capture(Scaled(), (torch.randn(3, 4), 2.0))
    x = torch.randn(5, 4)
    assert torch.equal(program.run((x, 2.0)), 2 * x)
    for call in (program.run, lambda inputs: program(*inputs)):
        with pytest.raises(BatchError, match=r"'scale' is 3\.0, but the model was captured with 2\.0"):
            call((x, 3.0))
        with pytest.raises(BatchError, match="'scale' is a tensor"):
            call((x, torch.tensor(2.0)))


def test_a_static_program_takes_only_its_own_batch_size():
    program = capture(nn.Linear(4, 2), torch.randn(3, 4), dynamic_batch=False)
    assert program.run(torch.randn(3, 4)).shape == (3, 2)
    with pytest.raises(BatchError, match=r"shape \[5, 4\], the model takes \[3, 4\]"):
        program.run(torch.randn(5, 4))


def test_an_input_without_the_batch_axis_keeps_its_shape():
    class Shared(nn.Module):
        def forward(self, x: Tensor, shared: Tensor) -> Tensor:
            return x @ shared

    program = capture(Shared(), (torch.randn(3, 4), torch.randn(4, 2)))
    with pytest.raises(BatchError, match=r"'shared' has shape \[5, 2\], the model takes \[4, 2\]"):
        program.run((torch.randn(3, 4), torch.randn(5, 2)))


def test_an_id_outside_its_table_is_named() -> None:
    class Lookup(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(9, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids).sum(-1)

    program = capture(Lookup(), torch.randint(0, 9, (4,)))
    with pytest.raises(BatchError, match=r"row 2: id 9 of input 'ids' is outside table 'table' \(ids 0 to 8\)"):
        program.run(torch.tensor([0, 1, 9]))


GIVEN: list[Any] = [None]

CALLS: dict[str, Callable[[Any], Any]] = {
    "calibrate": lambda model: afm_fx.calibrate(model, []),
    "make_plan": lambda model: afm_fx.make_plan(model, *GIVEN, *GIVEN),
    "apply_plan": lambda model: afm_fx.apply_plan(model, *GIVEN),
    "refit_plan": lambda model: afm_fx.refit_plan(model, *GIVEN, *GIVEN),
    "sweep": lambda model: afm_fx.sweep(model, GIVEN[0], []),
    "pack": afm_fx.pack,
    "recover": lambda model: afm_fx.recover(model, model, []),
    "explain_plan": lambda model: afm_fx.explain_plan(model, *GIVEN),
    "split_inputs": afm_fx.split_inputs,
    "reduce_precision": lambda model: afm_fx.reduce_precision(model, "int8"),
    "to_exported_program": afm_fx.to_exported_program,
    "export_onnx": lambda model: afm_fx.export_onnx(model, "model.onnx"),
    "export_onnx_buckets": lambda model: afm_fx.export_onnx_buckets(model, "model.onnx"),
    "export_aoti": lambda model: afm_fx.export_aoti(model, "model.pt2"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_module_in_a_programs_place_is_refused_with_the_right_call(name: str) -> None:
    with pytest.raises(UserError, match=rf"afm_fx\.{name} takes a captured program, got Lookup: .*afm_fx\.capture"):
        CALLS[name](Lookup())


def test_a_change_in_a_programs_place_is_refused_with_the_right_call() -> None:
    example = (torch.randint(0, 10, (3,)), torch.randn(3, 3))
    change: Any = afm_fx.pack(capture(Lookup().eval(), example))
    with pytest.raises(UserError, match=r"got Change: pass its \.program"):
        afm_fx.pack(change)
    exported: Any = torch.export.export(Lookup().eval(), example)
    with pytest.raises(UserError, match=r"got ExportedProgram: program = afm_fx\.capture\(exported_program\)"):
        afm_fx.pack(exported)
