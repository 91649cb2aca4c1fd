"""Editing graphs: calls, parameters and buffers, replaced nodes, and what nothing uses any more.

Every node that a pass creates goes through :func:`call`, :func:`parameter` or :func:`buffer`, so that its value (shape
and dtype, symbolic in the batch) and its provenance are right by construction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from passes.graph.nodes import PROVENANCE, aten, fake_mode, get_attribute
from passes.graph.values import set_value


def reserve_names(module: GraphModule, names: Collection[str]) -> None:
    """Keeps names of nodes that are gone from being given again: a copy of a graph has forgotten them."""
    present = {node.name for node in module.graph.nodes}
    for name in names:
        if name not in present:
            module.graph._graph_namespace.create_name(name, None)


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
    weight: torch.Tensor | Node,
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
        weight: a node that holds it where the weight is that of another Linear.
        name: the name of the weight that it is made of.
        word: what tells its weight and bias apart from that one, see :func:`derived_name`.
    """
    constants = [
        tensor
        if isinstance(tensor, Node)
        else parameter(module, derived_name(name, word, leaf), tensor.contiguous(), rule=rule, trainable=trainable)
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
