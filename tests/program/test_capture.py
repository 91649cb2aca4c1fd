from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from afm_fx.errors import CaptureError
from afm_fx.program.capture import capture

aten = torch.ops.aten


class WithLinear(nn.Module):
    """Has a Linear; subclasses say what they do with it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)


class Affine(WithLinear):
    """The smallest model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def operators(program) -> list[str]:
    return [str(node.target) for node in program.graph_module.graph.nodes if node.op == "call_function"]


def test_module_graph_module_and_exported_program_give_the_same_results():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    example = torch.randn(3, 4)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    programs = {
        "torch.export": capture(model, example),
        "GraphModule": capture(torch.fx.symbolic_trace(model), example),
        "ExportedProgram": capture(exported),
    }
    inputs = torch.randn(7, 4)
    for program in programs.values():
        assert torch.equal(program(inputs), model(inputs))
        assert program.dynamic_batch
        assert program.batched == (True,)
        assert program.parameter_count() == 4 * 8 + 8 + 8 * 2 + 2
    assert programs["torch.export"].front_door == "torch.export"
    assert programs["ExportedProgram"].front_door == "ExportedProgram"


def test_static_exported_program_stays_static():
    program = capture(torch.export.export(Affine().eval(), (torch.randn(3, 4),)))
    assert not program.dynamic_batch
    assert program.dynamic_shapes() is None


def test_exported_program_keeps_only_its_commonest_dynamic_axis_as_the_batch():
    class Scores(nn.Module):
        def forward(self, users: Tensor, items: Tensor, bias: Tensor) -> Tensor:
            return users @ items.T + bias[:, None]

    users, items = torch.export.Dim("users"), torch.export.Dim("items")
    example = (torch.randn(3, 4), torch.randn(5, 4), torch.randn(3))
    program = capture(torch.export.export(Scores(), example, dynamic_shapes=({0: users}, {0: items}, {0: users})))
    assert program.batched == (True, False, True)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(0.5)])
def test_exported_program_in_training_mode_is_refused(layer):
    model = nn.Sequential(nn.Linear(4, 4), layer).train()
    with pytest.raises(CaptureError, match=r"training mode.*model\.eval\(\)"):
        capture(torch.export.export(model, (torch.randn(3, 4),)))


def test_tensor_tuple_keyword_dict_and_single_dict_are_all_understood():
    class TwoInputs(WithLinear):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.linear(a) - self.linear(b)

    class OneDict(WithLinear):
        def forward(self, features: dict[str, Any]) -> Tensor:
            return self.linear(features["a"]) - self.linear(features["nested"]["b"])

    a, b = torch.randn(3, 4), torch.randn(3, 4)
    fresh_a, fresh_b = torch.randn(5, 4), torch.randn(5, 4)
    two, one = TwoInputs().eval(), OneDict().eval()
    affine = Affine().eval()
    assert torch.equal(capture(affine, a).run(fresh_a), affine(fresh_a))
    expected = two(fresh_a, fresh_b)
    assert torch.equal(capture(two, (a, b)).run((fresh_a, fresh_b)), expected)
    by_keyword = capture(two, {"b": b, "a": a})
    assert not by_keyword.single_dict_argument
    assert torch.equal(by_keyword.run({"a": fresh_a, "b": fresh_b}), expected)
    assert torch.equal(by_keyword(a=fresh_a, b=fresh_b), expected)
    nested = capture(one, {"nested": {"b": b}, "a": a})
    assert nested.single_dict_argument
    fresh = {"a": fresh_a, "nested": {"b": fresh_b}}
    assert torch.equal(nested.run(fresh), one(fresh))
    assert torch.equal(nested({"nested": {"b": fresh_b}, "a": fresh_a}), one(fresh))


def test_keyword_only_inputs_are_bound_by_name_not_by_order():
    class KeywordOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, *, ids: Tensor, weights: Tensor, shared: Tensor) -> Tensor:
            return self.table(ids) * weights + shared

    model = KeywordOnly().eval()
    example = {"shared": torch.randn(1, 4), "weights": torch.randn(3, 4), "ids": torch.tensor([1, 2, 3])}
    program = capture(model, example)
    assert program.batched == (False, True, True)
    fresh = {"ids": torch.tensor([4, 0]), "weights": torch.randn(2, 4), "shared": torch.randn(1, 4)}
    assert torch.equal(program.run(fresh), model(**fresh))


def test_variadic_inputs_are_captured_and_the_model_keeps_its_forward():
    class Positional(WithLinear):
        def forward(self, *features: Tensor) -> Tensor:
            return self.linear(features[0]) - self.linear(features[1])

    class Keywords(WithLinear):
        def forward(self, **features: Tensor) -> Tensor:
            return self.linear(features["a"]) - self.linear(features["b"])

    a, b = torch.randn(5, 4), torch.randn(5, 4)
    positional, keywords = Positional().eval(), Keywords().eval()
    assert torch.equal(capture(positional, (a[:3], b[:3])).run((a, b)), positional(a, b))
    program = capture(keywords, {"b": b[:3], "a": a[:3]})
    assert torch.equal(program.run({"a": a, "b": b}), keywords(a=a, b=b))
    assert "forward" not in vars(keywords)


def test_output_structure_is_the_models():
    class Structured(WithLinear):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
            y = self.linear(x)
            return y, {"tasks": [y.relu(), -y]}

    model = Structured().eval()
    inputs = torch.randn(5, 4)
    found, expected = capture(model, torch.randn(3, 4)).run(inputs), model(inputs)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    assert all(map(torch.equal, pytree.tree_leaves(found), pytree.tree_leaves(expected)))


def test_training_modes_are_restored_module_by_module_also_after_a_failure():
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Dropout(0.5))
    model.train()
    norm.eval()
    modes = [module.training for module in model.modules()]
    mean = norm.get_buffer("running_mean").clone()
    program = capture(model, torch.randn(3, 4))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(CaptureError):
        capture(model, torch.randn(3, 5))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(norm.get_buffer("running_mean"), mean)
    inputs = torch.randn(6, 4)
    assert torch.equal(program.run(inputs), model.eval()(inputs))


def test_dynamic_batch_can_be_switched_off():
    class FixedBatch(WithLinear):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).view(3, 2)

    model = FixedBatch().eval()
    with pytest.raises(CaptureError, match=r"constant \(3\).*dynamic_batch=False"):
        capture(model, torch.randn(3, 4))
    program = capture(model, torch.randn(3, 4), dynamic_batch=False)
    assert not program.dynamic_batch
    inputs = torch.randn(3, 4)
    assert torch.equal(program.run(inputs), model(inputs))


@pytest.mark.parametrize("rows", [0, 1])
def test_an_example_of_fewer_than_two_rows_is_refused(rows):
    with pytest.raises(CaptureError, match=rf"{rows} row\(s\); give at least 2"):
        capture(Affine(), torch.randn(rows, 4))


def test_an_example_without_a_batch_axis_is_refused():
    with pytest.raises(CaptureError, match="no tensor with a batch axis"):
        capture(Affine(), torch.tensor(1.0))


def test_a_missing_example_is_refused():
    with pytest.raises(CaptureError, match="example_inputs are needed"):
        capture(Affine())


@pytest.mark.parametrize("model", ["deepfm", None, 3])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(CaptureError, match=f"got {type(model).__name__}"):
        capture(model, torch.randn(3, 4))


def test_example_inputs_that_do_not_fit_the_signature_name_the_arguments():
    class TwoInputs(WithLinear):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return self.linear(user) + self.linear(item)

    with pytest.raises(CaptureError, match="usr, item"):
        capture(TwoInputs(), {"usr": torch.randn(3, 4), "item": torch.randn(3, 4)})
    with pytest.raises(CaptureError, match="missing a required argument: 'item'"):
        capture(TwoInputs(), torch.randn(3, 4))


def test_a_model_that_cannot_be_exported_gives_torchs_reason_and_what_to_try(capfd):
    class Branches(WithLinear):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return self.linear(x)
            return x

    with pytest.raises(CaptureError) as refusal:
        capture(Branches(), torch.randn(3, 4))
    message = str(refusal.value)
    assert "Branches" in message
    assert "data-dependent" in message
    assert "torch.where" in message
    assert len(message) < 1200
    assert refusal.value.__cause__ is not None
    assert capfd.readouterr().err == ""


def test_a_shape_mismatch_inside_the_model_gives_torchs_reason(capfd):
    with pytest.raises(CaptureError, match="same reduction dim"):
        capture(Affine(), torch.randn(3, 5))
    assert capfd.readouterr().err == ""


def test_a_model_that_only_torch_fx_can_trace_comes_in_by_the_other_door():
    class Switch(WithLinear):
        def __init__(self) -> None:
            super().__init__()
            self.temperature: Tensor
            self.register_buffer("temperature", torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) / self.temperature if self.temperature > 1 else x

    model = Switch().eval()
    program = capture(model, torch.randn(3, 4))
    assert program.front_door == "torch.fx trace, then torch.export"
    inputs = torch.randn(5, 4)
    assert torch.equal(program.run(inputs), model(inputs))
    assert program.graph_module.get_parameter("linear.weight") is model.linear.weight


def test_what_a_model_writes_into_its_state_is_left_out_with_a_warning():
    class Counts(WithLinear):
        def __init__(self) -> None:
            super().__init__()
            self.steps: Tensor
            self.register_buffer("steps", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            return self.linear(x) + self.steps

    model = Counts().eval()
    with pytest.warns(UserWarning, match=r"changes \['steps'\]"):
        program = capture(model, torch.randn(3, 4))
    inputs = torch.randn(5, 4)
    first, second = program.run(inputs), program.run(inputs)
    assert model.steps.item() == 0
    assert torch.equal(first, second)
    assert torch.equal(first, model(inputs))


def test_what_a_model_writes_into_its_input_stays_with_the_caller():
    class ZeroesInput(WithLinear):
        def forward(self, x: Tensor) -> Tensor:
            x[:, 0] = 0
            return self.linear(x)

    model = ZeroesInput().eval()
    with pytest.warns(UserWarning, match=r"changes \['x'\]"):
        program = capture(model, torch.randn(3, 4))
    inputs = torch.randn(5, 4)
    before = inputs.clone()
    found = program.run(inputs)
    assert torch.equal(inputs, before)
    assert torch.equal(found, model(inputs.clone()))


def test_a_model_that_is_random_in_eval_mode_is_warned_about():
    class AlwaysDrops(WithLinear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.linear(x), 0.5, training=True)

    with pytest.warns(UserWarning, match="random even in eval mode"):
        program = capture(AlwaysDrops(), torch.randn(3, 4))
    assert program.warnings


def test_attention_that_drops_nothing_is_not_random():
    class Attends(WithLinear):
        def __init__(self, dropped: float) -> None:
            super().__init__()
            self.dropped = dropped

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x).unsqueeze(1)
            return nn.functional.scaled_dot_product_attention(y, y, y, dropout_p=self.dropped)

    assert capture(Attends(0.0), torch.randn(3, 4)).warnings == ()
    with pytest.warns(UserWarning, match="random even in eval mode"):
        capture(Attends(0.5), torch.randn(3, 4))


def test_a_quiet_model_is_captured_without_a_word(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = capture(Affine(), torch.randn(3, 4))
    assert program.warnings == ()
    assert capfd.readouterr() == ("", "")


def test_the_example_is_copied_and_detached():
    example = torch.randn(3, 4, requires_grad=True)
    program = capture(Affine(), example)
    with torch.no_grad():
        example.zero_()
    assert program.example_args[0].abs().sum() > 0
    assert not program.example_args[0].requires_grad


def test_tied_weights_are_one_parameter_under_their_first_name():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Embedding(10, 4)
            self.answer = nn.Embedding(10, 4)
            self.answer.weight = self.query.weight
            self.linear = nn.Linear(8, 1)

        def forward(self, question: Tensor, answer: Tensor) -> Tensor:
            return self.linear(torch.cat([self.answer(answer), self.query(question)], 1))

    ids = torch.tensor([1, 2, 3])
    for _ in range(3):  # torch picks either name, from run to run
        program = capture(Tied().eval(), (ids, ids))
        names = [name for name, _ in program.graph_module.named_parameters()]
        assert sorted(names) == ["linear.bias", "linear.weight", "query.weight"]
        assert program.parameter_count() == 40 + 8 + 1


def test_tensor_constants_count_and_convert_as_state():
    class Constants(WithLinear):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.tensor([1.0, 2.0])

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.scale * torch.tensor([0.5, 0.25])

    program = capture(Constants().eval(), torch.randn(3, 4))
    assert program.parameter_count() == 10
    assert program.state_bytes() == 4 * (10 + 4)
    wide = program.to(torch.float64)
    assert wide.state_bytes() == 8 * (10 + 4)
    assert wide.run(torch.randn(3, 4)).dtype == torch.float64


def test_inputs_that_are_not_tensors_become_part_of_the_graph():
    class Scaled(WithLinear):
        def forward(self, x: Tensor, scale: float = 1.0, mode: str | None = None) -> Tensor:
            return self.linear(x) * scale if mode is None else x

    model = Scaled().eval()
    program = capture(model, (torch.randn(3, 4), 2.0, None))
    inputs = torch.randn(5, 4)
    assert torch.equal(program.run((inputs, 2.0, None)), model(inputs, 2.0))
    default = capture(model, torch.randn(3, 4))
    assert torch.equal(default.run(inputs), model(inputs))


def test_the_batch_is_the_commonest_length_of_axis_0():
    class Weighted(WithLinear):
        def forward(self, weights: Tensor, x: Tensor, bias: Tensor) -> Tensor:
            return self.linear(x) @ weights + bias

    model = Weighted().eval()
    program = capture(model, (torch.randn(2, 7), torch.randn(3, 4), torch.randn(3, 1)))
    assert program.batched == (False, True, True)
    fresh = (torch.randn(2, 7), torch.randn(6, 4), torch.randn(6, 1))
    assert torch.equal(program.run(fresh), model(*fresh))


def test_the_length_of_a_tensor_fixes_the_batch_and_the_advice_says_so():
    class Flattens(WithLinear):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).view(len(x), 2)

    with pytest.raises(CaptureError, match=r"len\(x\)"):
        capture(Flattens(), torch.randn(3, 4))


def test_an_input_that_happens_to_have_the_batchs_length_is_explained():
    class Weighted(WithLinear):
        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return self.linear(x) @ weights

    with pytest.raises(CaptureError, match="example batch of another length"):
        capture(Weighted(), (torch.randn(2, 4), torch.randn(2, 7)))


def test_a_copy_for_layout_before_a_view_still_runs_on_real_tensors():
    class Transposed(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.linear, self.how = nn.Linear(12, 2), how

        def forward(self, x: Tensor) -> Tensor:
            moved = x.transpose(1, 2)
            if self.how == "reshape":
                return self.linear(moved.reshape(x.shape[0], -1))
            return self.linear(moved.contiguous().view(x.shape[0], -1))

    for how in ("reshape", "contiguous"):
        model = Transposed(how).eval()
        program = capture(model, torch.randn(3, 4, 3))
        assert "aten.clone.default" not in operators(program)
        inputs = torch.randn(5, 4, 3)
        assert torch.equal(program.run(inputs), model(inputs))


def test_what_the_model_returns_is_never_its_input_or_its_weight():
    class ReturnsCopies(WithLinear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.clone(), self.linear.weight.clone()

    model = ReturnsCopies()
    inputs = torch.randn(3, 4)
    first, second = capture(model, inputs).run(inputs)
    assert first.data_ptr() != inputs.data_ptr()
    assert second.data_ptr() != model.linear.weight.data_ptr()


def test_nodes_keep_the_users_source_line_and_the_module_they_come_from():
    program = capture(Affine(), torch.randn(3, 4))
    linear = next(node for node in program.graph_module.graph.nodes if node.target is aten.linear.default)
    assert "test_capture.py" in linear.meta["stack_trace"]
    assert "return self.linear(x)" in linear.meta["stack_trace"]
    assert "linear" in {path for path, _ in linear.meta["nn_module_stack"].values()}


class Functional(WithLinear):
    """Operators that torch leaves as they are, composite ones among them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.table = nn.LayerNorm(4), nn.Embedding(9, 4)
        self.matrix = nn.Parameter(torch.randn(4, 4))

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        looked = torch.cat([self.table(ids), x.unsqueeze(1)], 1)
        mixed = torch.einsum("bfd,de->bfe", looked, self.matrix).softmax(1) @ self.matrix
        return self.linear(self.norm(torch.where(mixed > 0, mixed, 0.5))[:, 0] * 1.5)


def test_an_export_that_is_functional_already_is_not_made_so_again(monkeypatch: pytest.MonkeyPatch):
    model, inputs = Functional(), (torch.randint(0, 9, (3, 2)), torch.randn(3, 4))
    with monkeypatch.context() as patch:
        patch.setattr(torch.export.ExportedProgram, "run_decompositions", lambda *_: pytest.fail("taken apart"))
        program = capture(model, inputs)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["afm_fx.program.capture"], "_is_functional", lambda _: False)
        other = capture(model, inputs)
    assert operators(program) == operators(other)
    batch = (torch.randint(0, 9, (5, 2)), torch.randn(5, 4))
    assert torch.equal(program.run(batch), other.run(batch))


@pytest.mark.parametrize(
    "change",
    [lambda x: x.relu_(), lambda x: x.flatten(1), lambda x: x.to(torch.float16), nn.Dropout(), nn.BatchNorm1d(4)],
)
def test_an_export_is_made_functional_where_an_operator_is_not_whole(change):
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.change = change if isinstance(change, nn.Module) else None

        def forward(self, x: Tensor) -> Tensor:
            return (self.change or change)(x * 2)

    model, inputs = Changed().eval(), torch.randn(3, 4)
    found = operators(capture(model, inputs))
    assert not {"aten.relu_.default", "aten.flatten.using_ints", "aten.to.dtype", "aten.dropout.default"} & set(found)
    assert torch.equal(capture(model, inputs).run(inputs), model(inputs))


def test_float_ids_into_a_table_of_more_than_2_to_the_24_rows_warn_loudly_at_the_caller():
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding.from_pretrained(torch.empty(2**24 + 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x[:, 0:1].long())

    with pytest.warns(UserWarning, match=r"'table.weight' has 16,777,217 rows.*COLLIDE") as caught:
        program = capture(Huge(), torch.zeros(3, 2))
    assert caught[0].filename == __file__
    assert len(program.warnings) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert capture(Huge(), torch.zeros(3, 2, dtype=torch.int64)).warnings == ()
