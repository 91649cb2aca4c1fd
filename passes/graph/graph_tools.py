"""Small tools for editing ATen graphs: nodes that carry their ``meta["val"]``, parameters, copies.

Every node that a pass creates goes through :func:`call` or :func:`parameter`, so that its value (shape and dtype,
symbolic in the batch) and its provenance are right by construction.
"""

from __future__ import annotations

import copy
import itertools
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar, cast

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

PROVENANCE = "afm_fx"
"""Key in ``node.meta`` under which a pass says which rule made a node."""

FACTORED_SITE = "afm_fx_site"
"""Key in ``node.meta`` under which the node that gives a site's code says (site name, code width)."""

COMPUTED = "afm_fx_computed"
"""Key in ``node.meta`` under which it stands what the node's value was computed from."""

aten = torch.ops.aten

Copied = TypeVar("Copied")


def clone_graph_module(module: GraphModule) -> GraphModule:
    """A graph module with a graph of its own that shares the parameters it uses with the original.

    Parameters that the graph does not reach are left behind.
    """
    clone = GraphModule(module, _copy(module.graph), class_name=type(module).__name__)
    clone.eval()
    return clone


def reserve_names(module: GraphModule, names: Collection[str]) -> None:
    """Keeps names of nodes that are gone from being given again: a copy of a graph has forgotten them."""
    present = {node.name for node in module.graph.nodes}
    for name in names:
        if name not in present:
            module.graph._graph_namespace.create_name(name, None)


def _copy(thing: Copied) -> Copied:
    """A deep copy. Copying the structure of a graph's inputs makes torch warn about a class of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        return copy.deepcopy(thing)


def fake_mode(graph: Graph) -> FakeTensorMode:
    """The fake tensor mode in which the graph's values live (a fresh one for a graph without values)."""
    for node in graph.nodes:
        mode = _mode_of(node)
        if mode is not None:
            return mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def _mode_of(node: Node) -> FakeTensorMode | None:
    """The mode of a node's value, None where it is no fake tensor."""
    for leaf in pytree.tree_leaves(node.meta.get("val")):
        if isinstance(leaf, torch._subclasses.FakeTensor):
            return leaf.fake_mode
    return None


def value_of(node: Node) -> Any:
    """The node's fake value."""
    return node.meta.get("val")


def shape_of(node: Node) -> tuple[Any, ...] | None:
    """The node's shape (ints and symbols), None where it is not one tensor."""
    value = value_of(node)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def rank_of(node: Any) -> int | None:
    """The number of axes of a node, None where it is not one tensor."""
    shape = shape_of(node) if isinstance(node, Node) else None
    return None if shape is None else len(shape)


def equal_sizes(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether sizes are equal for every batch size, without adding a guard."""
    return len(one) == len(other) and all(map(statically_known_true, map(operator.eq, one, other)))


def same_form(one: Node, other: Node) -> bool:
    """Whether two nodes are tensors that are known to have the same shape and number format."""
    left, right = shape_of(one), shape_of(other)
    if left is None or right is None or value_of(one).dtype != value_of(other).dtype:
        return False
    return equal_sizes(left, right)


def is_random(node: Node) -> bool:
    """Whether two evaluations of a node may differ (attention that drops nothing is tagged as random, but is not)."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    if node.target is not aten.scaled_dot_product_attention.default:
        return True
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0)
    return not isinstance(dropout, (int, float)) or dropout != 0


def get_attribute(module: nn.Module, target: str) -> Any:
    """The tensor at a dotted name."""
    for part in target.split("."):
        module = getattr(module, part)
    return module


def args_of(node: Node) -> tuple[Any, ...]:
    """The node's positional arguments, of whatever type they are."""
    return node.args


def argument(node: Node, position: int, default: Any) -> Any:
    """A positional argument or its default."""
    return node.args[position] if len(node.args) > position else default


def constant_of(module: GraphModule, node: Any) -> torch.Tensor | None:
    """The tensor behind a ``get_attr`` node, or None."""
    if isinstance(node, Node) and node.op == "get_attr":
        attribute = get_attribute(module, str(node.target))
        return attribute if isinstance(attribute, torch.Tensor) else None
    return None


def is_call(node: object, *targets: Any) -> TypeGuard[Node]:
    """Whether something is a call of one of these operators that gives all arguments by position."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets and not node.kwargs


@dataclass(frozen=True, eq=False)
class WeightedCall:
    """A call of an operator with a constant weight: a Linear or another product, or a lookup in a table.

    Attributes:
        source: what varies: features ``[..., inputs]``, or ids.
        weight: of a product ``[outputs, inputs]``, whichever way round its operator takes it; of a lookup the table.
        start: what an ``addmm`` starts from.
    """

    node: Node
    source: Node
    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    start: Node | None = None


SOURCE_AND_WEIGHT: dict[Any, tuple[int, int]] = {
    aten.linear.default: (0, 1),
    aten.mm.default: (0, 1),
    aten.matmul.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.embedding.default: (1, 0),
}
"""Positions of what varies and of the weight among an operator's arguments."""


def weighted_call(module: GraphModule, node: object, *targets: Any) -> WeightedCall | None:
    """Matches a call of one of these operators whose weight (and bias) is a constant, and whose source is none.

    Args:
        module: the graph module that holds the constants.
        node: any node, or an argument of one.
        targets: some of ``linear``, ``mm``, ``matmul``, ``addmm`` and ``embedding``, in their ATen forms.

    Returns:
        None where it is another operator, or where the weight has not two axes.
    """
    if not is_call(node, *targets):
        return None
    first, second = (node.args[place] for place in SOURCE_AND_WEIGHT[node.target])
    weight = constant_of(module, second)
    if weight is None or weight.dim() != 2 or not isinstance(first, Node) or constant_of(module, first) is not None:
        return None
    name = str(cast(Node, second).target)
    if node.target is aten.embedding.default:
        return WeightedCall(node, first, name, weight)
    if node.target is not aten.linear.default:
        start = node.args[0] if node.target is aten.addmm.default else None
        return WeightedCall(node, first, name, weight.mT, start=cast(Node | None, start))
    given = node.args[2] if len(node.args) > 2 else None
    bias = constant_of(module, given)
    return None if given is not None and bias is None else WeightedCall(node, first, name, weight, bias)


def rewrite_each(module: GraphModule, rule: Callable[[GraphModule, Node], Node | None]) -> bool:
    """Asks a rule for every call that is read, in order, what is to stand in its place; tells whether any changed.

    What the rule emits goes before the call. It returns None where the call stays; constants need no gradient.
    """
    changed = False
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.users:
            continue
        with module.graph.inserting_before(node), torch.no_grad():
            made = rule(module, node)
        if made is not None:
            replace_node(node, made)
            changed = True
    return changed


def replace_node(node: Node, made: Node) -> None:
    """Lets every reader of a node read another one, and erases it."""
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)


def call(
    graph: Graph, target: Callable[..., Any], *args: Any, rule: str, like: Node | None = None, **kwargs: Any
) -> Node:
    """Creates a call node at the graph's insertion point with its value computed and its maker recorded.

    Args:
        rule: the rule that makes the node, kept in ``node.meta["afm_fx"]``.
        like: the node it stands for; its stack trace is taken over.
    """
    node = graph.call_function(target, args, kwargs)
    set_value(node)
    stamp(node, rule, like)
    return node


def stamp(node: Node, rule: str, like: Node | None = None) -> None:
    """Records which rule made a node and takes over the source position of the node it stands for."""
    node.meta[PROVENANCE] = rule
    for key in ("stack_trace", "nn_module_stack"):
        if like is not None and key in like.meta:
            node.meta[key] = like.meta[key]


def compute_value(node: Node) -> Any:
    """The node's value from its arguments' values, in the graph's fake mode.

    Composite operators take torch's Python decompositions: the ones in C++ compare sizes (``pad`` does), which would
    fix the symbolic batch to the example's, here and in every graph that shares the symbol.
    """
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta.get("val"))
    mode = next((mode for each in node.all_input_nodes if (mode := _mode_of(each)) is not None), None)
    with mode or fake_mode(node.graph), enable_python_dispatcher(), torch.no_grad():
        return cast(Callable[..., Any], node.target)(*args, **kwargs)


def set_value(node: Node) -> None:
    """Gives a node the value that its operator makes of its operands' values."""
    node.meta["val"] = compute_value(node)
    note_computed(node)


def note_computed(node: Node) -> None:
    """Remembers that the node's value is what its operator makes of its operands' values."""
    node.meta[COMPUTED] = _call_on_values(node)


def is_computed(node: Node) -> bool:
    """Whether the node's value is known to be what its operator makes of its operands' values.

    A copy of a node keeps what is known of it: values are compared as objects, which copies of a graph share.
    """
    known, now = node.meta.get(COMPUTED), _call_on_values(node)
    return known is not None and len(known) == len(now) and all(map(_alike, known, now))


def _call_on_values(node: Node) -> tuple[Any, ...]:
    """The node's value, its operator and its arguments, flat, every operand's value in its place."""
    leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
    values = (value_of(leaf) if isinstance(leaf, Node) else leaf for leaf in leaves)
    return (value_of(node), node.target, structure, *values)


def _alike(one: Any, other: Any) -> bool:
    """Whether two leaves are the same object, or equal numbers, names or structures of one type."""
    comparable = isinstance(one, int | float | str | pytree.TreeSpec)
    return one is other or (comparable and type(one) is type(other) and one == other)


def parameter(
    module: GraphModule,
    name: str,
    tensor: torch.Tensor,
    *,
    rule: str,
    trainable: bool = True,
    device: torch.device | None = None,
) -> Node:
    """Registers a parameter under a dotted name (made unique) and returns its ``get_attr`` node.

    The node is placed at the graph's start so that it is available everywhere.

    Args:
        device: where the node's value is said to be, for a parameter without data.
    """
    owner, name, leaf = _place_for(module, name)
    owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=trainable and tensor.is_floating_point()))
    return _attribute_node(module, name, rule, device)


def emit_linear(  # noqa: PLR0917 - a Linear is its input and its constants
    module: GraphModule,
    source: Node,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    name: str,
    word: str,
    *,
    rule: str,
    like: Node,
    trainable: bool = True,
) -> Node:
    """Creates a Linear with constants of its own at the graph's insertion point.

    Args:
        name: the name of the weight that it is made of.
        word: what tells its weight and bias apart from that one, see :func:`derived_name`.
    """
    constants = [
        parameter(module, derived_name(name, word, leaf), tensor.contiguous(), rule=rule, trainable=trainable)
        for leaf, tensor in (("weight", weight), ("bias", bias))
        if tensor is not None
    ]
    return call(module.graph, aten.linear.default, source, *constants, rule=rule, like=like)


def buffer(module: GraphModule, name: str, tensor: torch.Tensor, *, rule: str) -> Node:
    """Registers a buffer under a dotted name (made unique) and returns its ``get_attr`` node at the graph's start."""
    owner, name, leaf = _place_for(module, name)
    owner.register_buffer(leaf, tensor)
    return _attribute_node(module, name, rule)


def _place_for(module: GraphModule, name: str) -> tuple[nn.Module, str, str]:
    """The submodule that a dotted name (made unique) belongs to, the name, and its last part."""
    name = _unique_attribute(module, _path_of_modules(module, name))
    owner: nn.Module = module
    *parents, leaf = name.split(".")
    for part in parents:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    return owner, name, leaf


def _attribute_node(module: GraphModule, name: str, rule: str, device: torch.device | None = None) -> Node:
    graph, held = module.graph, get_attribute(module, name)
    with graph.inserting_before(next(iter(graph.nodes))):
        node = graph.get_attr(name)
    with fake_mode(graph):
        node.meta["val"] = torch.empty_strided(
            held.shape, held.stride(), dtype=held.dtype, device=device or held.device
        )
    stamp(node, rule)
    return node


def derived_name(name: str, word: str, leaf: str = "weight") -> str:
    """The name of a parameter made of another: ``mlp.0.weight`` becomes ``mlp.0.merged.weight``."""
    stem, _, last = name.rpartition(".")
    if last not in ("weight", "bias") or not stem:
        return f"{name}_{word}.{leaf}"  # the name itself is a tensor, nothing can stand below it
    return f"{stem.removesuffix(f'.{word}')}.{word}.{leaf}"


def _path_of_modules(module: nn.Module, name: str) -> str:
    """The name, with a part that is a tensor (or anything but a module) joined to the next: ``table_codes.weight``."""
    owner: Any = module
    parts, path = name.split("."), list[str]()
    while len(parts) > 1:
        held = getattr(owner, parts[0], None)
        if held is None or isinstance(held, nn.Module):
            path.append(parts.pop(0))
            owner = held
        else:
            parts[:2] = [f"{parts[0]}_{parts[1]}"]
    return ".".join([*path, *parts])


def _unique_attribute(module: nn.Module, name: str) -> str:
    for suffix in itertools.count():
        candidate = name if suffix == 0 else f"{name}_{suffix}"
        try:
            get_attribute(module, candidate)
        except AttributeError:
            return candidate
    raise AssertionError  # unreachable: itertools.count never ends


def finish(module: GraphModule) -> bool:
    """Removes dead nodes, drops parameters nothing uses, regenerates the code; says whether there was anything."""
    changed = module.graph.eliminate_dead_code()
    changed |= drop_unused_state(module)
    module.recompile()
    return changed


def drop_unused_state(module: GraphModule) -> bool:
    """Deletes parameters, buffers and empty submodules that no node names; says whether there were any."""
    targets = {str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
    needed = {prefix for target in targets for prefix in prefixes(target)}
    return _drop_unused(module, "", targets, needed)


def _drop_unused(owner: nn.Module, prefix: str, targets: set[str], needed: set[str]) -> bool:
    """Below one module.

    Args:
        targets: names that the graph uses as a whole: what is below them (a submodule's own state) stays.
        needed: the targets and all modules on the way to them.
    """
    changed = False
    for store in (owner._parameters, owner._buffers):
        for leaf in list(store):
            if f"{prefix}{leaf}" not in targets:
                del store[leaf]
                changed = True
    for name, child in list(owner.named_children()):
        path = f"{prefix}{name}"
        if path in targets:
            continue
        changed |= _drop_unused(child, f"{path}.", targets, needed)
        if path not in needed and not (child._parameters or child._buffers or child._modules):
            delattr(owner, name)
            changed = True
    return changed


def prefixes(target: str) -> Iterator[str]:
    """``a``, ``a.b`` and ``a.b.c`` of ``a.b.c``."""
    parts = target.split(".")
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def convert_dtype(module: GraphModule, dtype: torch.dtype) -> GraphModule:
    """A copy of the module that computes in another floating dtype, state and dtype arguments alike."""
    clone = clone_graph_module(module)
    old = {
        tensor.dtype for tensor in itertools.chain(clone.parameters(), clone.buffers()) if tensor.is_floating_point()
    }
    clone = _copy(clone).to(dtype)
    _convert_graph(clone, old, dtype)
    return clone


def _convert_graph(module: GraphModule, old: Collection[torch.dtype], dtype: torch.dtype) -> None:
    """Converts dtype arguments and values of a graph whose state is converted, and of the graphs that it runs."""

    def converted(leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype):
            return dtype if leaf in old else leaf
        return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.dtype in old else leaf

    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = pytree.tree_map(
                lambda leaf: converted(leaf) if isinstance(leaf, torch.dtype) else leaf, (node.args, node.kwargs)
            )
    for node in module.graph.nodes:
        value, known = get_attribute(module, str(node.target)) if node.op == "get_attr" else None, node.meta.get("val")
        if isinstance(value, GraphModule):
            _convert_graph(value, old, dtype)
        elif isinstance(value, torch.Tensor) and known is not None:
            node.meta["val"] = known.to(value.dtype)
        elif node.op == "placeholder" and isinstance(known, torch.Tensor) and known.is_floating_point():
            node.meta["val"] = known.to(dtype)
        elif node.op == "call_function":
            inner = isinstance(node.target, torch._ops.HigherOrderOperator)
            node.meta["val"] = pytree.tree_map(converted, known) if inner else compute_value(node)
    module.recompile()
