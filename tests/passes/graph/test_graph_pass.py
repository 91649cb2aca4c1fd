"""The frame of every pass: what it refuses to start on, and what it refuses to hand on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

import afm_fx
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.state_writes import EraseStateWrites
from passes.codes.factor import factor_of
from passes.graph import PROVENANCE, aten, call, clone_graph_module
from passes.graph.errors import PassPostconditionError, PassPreconditionError, RewriteError, TableIndexError
from passes.graph.graph_checks import check_values
from passes.graph.graph_pass import GraphPass
from passes.sink_codes import SinkCodes
from passes.sites.sites import find_sites
from tests.graphs import Tower, tower_batch
from tests.passes.test_sink_codes import orthonormal_factors


class Doing(GraphPass):
    """A pass that does what it is told."""

    def __init__(self, change: Callable[[GraphModule], GraphModule | None]) -> None:
        super().__init__()
        self.change = change

    def rewrite(self, graph_module: GraphModule) -> GraphModule | None:
        return self.change(graph_module)


def tower() -> GraphModule:
    return clone_graph_module(afm_fx.capture(Tower(), tower_batch(4)).graph_module)


def first(module: GraphModule, target: object) -> Node:
    return next(node for node in module.graph.nodes if node.target is target)


def without_value(module: GraphModule) -> None:
    del first(module, aten.relu.default).meta["val"]


def with_wrong_shape(module: GraphModule) -> None:
    node = first(module, aten.relu.default)
    node.meta["val"] = first(module, aten.cat.default).meta["val"]


def with_wrong_dtype(module: GraphModule) -> None:
    node = first(module, aten.relu.default)
    node.meta["val"] = node.meta["val"].double()


def with_fixed_batch(module: GraphModule) -> None:
    node = first(module, aten.relu.default)
    with node.meta["val"].fake_mode:
        node.meta["val"] = torch.empty(4, 12)


def with_stale_tensor(module: GraphModule) -> None:
    module.double()


def without_tensor(module: GraphModule) -> None:
    del module.get_submodule("first").weight


def out_of_order(module: GraphModule) -> None:
    first(module, aten.cat.default).append(first(module, aten.embedding.default))


def with_impossible_operand(module: GraphModule) -> None:
    node = first(module, aten.linear.default)
    node.args = (first(module, aten.embedding.default), *node.args[1:])


BROKEN: dict[str, tuple[Callable[[GraphModule], None], str]] = {
    "a value is missing": (without_value, r"node 'relu' \(aten.relu.default\) has no value"),
    "a value has another shape": (with_wrong_shape, r"node 'relu' .* float32\[s\d+, 23\], but .* float32\[s\d+, 12\]"),
    "a value has another dtype": (with_wrong_dtype, r"node 'relu' .* float64.*, but .* float32"),
    "a value has one batch size": (with_fixed_batch, r"node 'relu' .*float32\[4, 12\], but"),
    "a tensor is not what its node says": (with_stale_tensor, r"node '\w+': meta\['val'\] is float32.* is float64"),
    "a tensor is missing": (without_tensor, "names 'first.weight', which the module does not have"),
    "a node comes after its user": (out_of_order, "not well formed: .*embedding"),
    "an operator does not take its operands": (with_impossible_operand, "node 'linear' .*(cannot be computed|but)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_no_pass_starts_on_a_broken_graph(name: str) -> None:
    change, message = BROKEN[name]
    module = tower()
    change(module)
    before = str(module.graph)
    for each in (Canonicalize(), SinkCodes({}), EraseStateWrites()):
        with pytest.raises(PassPreconditionError, match=f"{type(each).__name__} cannot run.*{message}") as raised:
            each(module)
        assert raised.value.__cause__ is not None
    assert str(module.graph) == before


@pytest.mark.parametrize("name", BROKEN)
def test_no_pass_hands_a_broken_graph_on(name: str) -> None:
    change, message = BROKEN[name]
    with pytest.raises(PassPostconditionError, match=f"Doing made .*{message}") as raised:
        Doing(change)(tower())
    assert raised.value.__cause__ is not None


def with_an_orphan(module: GraphModule) -> None:
    module.register_parameter("orphan", nn.Parameter(torch.zeros(2)))


def with_an_anonymous_node(module: GraphModule) -> None:
    relu = first(module, aten.relu.default)
    with module.graph.inserting_before(relu):
        again = call(module.graph, aten.relu.default, relu.args[0], rule="test")
    del again.meta[PROVENANCE]
    relu.replace_all_uses_with(again)


def with_another_operator(module: GraphModule) -> None:
    first(module, aten.relu.default).target = aten.abs.default


def with_another_argument(module: GraphModule) -> None:
    first(module, aten.select.int).args = (*first(module, aten.select.int).args[:2], 1)


def with_an_operand_of_another_shape(module: GraphModule) -> None:
    cat = first(module, aten.cat.default)
    pieces = list(cat.args[0])  # type: ignore[arg-type]
    cat.args = ([pieces[-1], *pieces[1:-1], pieces[0]], *cat.args[1:])


def without_an_input(module: GraphModule) -> None:
    module.graph.find_nodes(op="placeholder")[1].name = "renamed"


CHANGED: dict[str, tuple[Callable[[GraphModule], None], str]] = {
    "a new node does not say who made it": (with_an_anonymous_node, r"new node 'relu_\w+' .* does not say which rule"),
    "a node has another operator": (with_another_operator, "node 'relu' was .*relu.* now it is .*abs"),
    "a node has another argument": (with_another_argument, "node 'select' was"),
    "a node reads something of another shape": (with_an_operand_of_another_shape, "node 'cat' read 'embedding'"),
    "an input has another name": (without_an_input, "the inputs were"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_pass_that_touches_what_is_not_its_own_is_named(name: str) -> None:
    change, message = CHANGED[name]
    with pytest.raises(PassPostconditionError, match=f"Doing made .*{message}"):
        Doing(change)(tower())


def test_the_promise_is_checked_on_the_result_not_on_the_input() -> None:
    def another(module: GraphModule) -> GraphModule:
        clone = clone_graph_module(module)
        with_another_operator(clone)
        return clone

    with pytest.raises(PassPostconditionError, match="node 'relu'"):
        Doing(another)(tower())


def test_what_nothing_uses_any_more_goes() -> None:
    result = Doing(with_an_orphan)(tower())
    assert not hasattr(result.graph_module, "orphan")
    assert not result.modified


def test_whether_a_pass_changed_anything_is_seen_from_the_graph() -> None:
    assert not Doing(lambda module: None)(tower()).modified

    def drop_relu(module: GraphModule) -> None:
        node = first(module, aten.relu.default)
        node.replace_all_uses_with(node.all_input_nodes[0])
        module.graph.erase_node(node)

    assert Doing(drop_relu)(tower()).modified


def test_what_goes_wrong_inside_is_typed_and_names_the_pass() -> None:
    def fail(module: GraphModule) -> None:
        raise ZeroDivisionError("by design")

    with pytest.raises(RewriteError, match="Doing failed: ZeroDivisionError: by design") as raised:
        Doing(fail)(tower())
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_failing_rule_is_named_with_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr("passes.sink_codes.restore", fail)
    monkeypatch.setattr("passes.laws.table._TABLE", {})
    module = tower()
    with pytest.raises(RewriteError, match=r"SinkCodes failed at node 'cat' \(aten.cat.default\): by design"):
        SinkCodes(orthonormal_factors(module))(module)


def test_a_code_in_place_of_features_is_found_even_where_the_shapes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave_the_code(walk: object, node: Node) -> None:
        for operand in node.all_input_nodes:
            if operand in walk.values:  # type: ignore[attr-defined]
                node.replace_input_with(operand, walk.values[operand].code)  # type: ignore[attr-defined]

    monkeypatch.setattr("passes.laws.table._TABLE", {})
    monkeypatch.setattr("passes.sink_codes._Walk._read_features", leave_the_code)
    module = tower()
    with pytest.raises(PassPostconditionError, match=r"node 'cat' reads the code .* in place of the features 'embed"):
        SinkCodes(orthonormal_factors(module))(module)


def test_a_factored_site_that_is_left_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passes.laws.table._TABLE", {})
    monkeypatch.setattr("passes.sink_codes._Walk._read_features", lambda walk, node: None)
    module = tower()
    with pytest.raises(PassPostconditionError, match="node 'embedding' of a factored site is still there"):
        SinkCodes(orthonormal_factors(module))(module)


def test_a_value_that_was_right_once_is_looked_at_again_when_its_node_changes() -> None:
    module = tower()
    check_values(module)
    relu = first(module, aten.relu.default)
    relu.args = (first(module, aten.cat.default),)
    with pytest.raises(Exception, match="node 'relu'"):
        check_values(module)


def test_a_second_run_changes_nothing_and_another_width_is_refused() -> None:
    program = afm_fx.capture(Tower(), tower_batch(4)).to(torch.float64)
    module = clone_graph_module(program.graph_module)
    factors = orthonormal_factors(module, ("embedding", "linear"))
    assert SinkCodes(factors)(module).modified
    code = module.code
    assert not SinkCodes(factors)(module).modified
    assert module.code == code
    with pytest.raises(TableIndexError, match="no site 'absent'"):
        SinkCodes({**factors, "absent": factors["first"]})(module)
    narrower = torch.linalg.qr(torch.randn(12, 3, dtype=torch.float64))[0]
    other = {"first": factor_of(narrower.mT.contiguous(), narrower, None)}
    with pytest.raises(TableIndexError, match="site 'first' is in codes 12 wide, its factor is 3"):
        SinkCodes(other)(module)


def test_sites_that_are_left_can_be_factored_in_a_second_run() -> None:
    program = afm_fx.capture(Tower(), tower_batch(4)).to(torch.float64)
    module = clone_graph_module(program.graph_module)
    factors = orthonormal_factors(module)
    (one, *rest) = factors
    SinkCodes({one: factors[one]})(module)
    assert SinkCodes(factors)(module).modified
    assert not {site.name for site in find_sites(module)} & set(rest)
    ids, dense = tower_batch(7)
    torch.testing.assert_close(module(ids, dense.double()), program.run((ids, dense)), rtol=1e-10, atol=1e-10)
