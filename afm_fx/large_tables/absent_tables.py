"""Programs whose large tables have no memory: what a rewrite needs of them is their shape.

A factory builds its model with every large tensor on torch's meta device, which allocates and fills nothing. Then each
large tensor gets a *stand-in*, one NaN that is seen under the tensor's shape, and everything else its values from the
checkpoint; so the model is captured and rewritten like any other. What a rewrite computed from a stand-in would be NaN,
and is found by that: it is an error, never a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from afm_fx.errors import ModelError, PlanError
from afm_fx.io import StoredTensor, open_checkpoint
from afm_fx.program import Inputs, Program, capture, fitting, import_factory, model_of
from passes.canonical import parts_of
from passes.graph import fake_mode
from passes.sites import SiteKind, find_sites

LARGE_BYTES = 1 << 20
"""Tables of so many bytes or more are not loaded."""

Factory = Callable[[], tuple[nn.Module, Inputs]]

_MADE_BY_SIZE = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint})

_PLACE = frozenset({"generator", "device", "pin_memory"})
"""Their arguments that a tensor without memory has no use for."""


@dataclass(frozen=True)
class AbsentTables:
    """A captured model without its large tables.

    Attributes:
        tables: where the rows of every large table lie, by the name of its parameter in the program.
        loaded: where all else lies that the program holds, by the same.
    """

    program: Program
    tables: Mapping[str, StoredTensor]
    loaded: Mapping[str, StoredTensor]

    def mapped(self) -> Program:
        """The program with its large tables as the checkpoint has them."""
        state = self.program.graph_module.state_dict()
        tables = {name: stored.mapped().to(state[name].dtype) for name, stored in self.tables.items()}
        return with_tables(self.program, tables)


def without_tables(
    model: str | Factory | nn.Module,
    checkpoint: Path,
    example_inputs: Inputs | None = None,
    *,
    large_bytes: int = LARGE_BYTES,
) -> AbsentTables:
    """Captures a model with the weights of a checkpoint, but for its large tables, which are not loaded.

    Args:
        model: ``package.module:factory`` or such a factory, which takes nothing and returns ``(model,
            example_inputs)``; it is called with large tensors on the meta device. Or a module, on the meta device where
            it is large; it is given other parameters.
        example_inputs: one batch of at least 2 rows, for a module.
        large_bytes: tables of so many bytes or more are not loaded.

    Raises:
        ModelError: the factory fails, or the checkpoint is of another model.
        CaptureError: the model cannot be captured.
    """
    stored = open_checkpoint(checkpoint)
    if isinstance(model, nn.Module):
        if example_inputs is None:
            raise ModelError("a module needs example_inputs beside it (one batch of at least 2 rows)")
        module = model
    else:
        module, example_inputs = _built(model, large_bytes)
    given = _give_weights(module.eval(), fitting(stored, module, checkpoint), large_bytes)
    return _load_other_than_tables(capture(module, example_inputs), given)


def with_tables(program: Program, tables: Mapping[str, Tensor]) -> Program:
    """The same program with other tensors, sharded ones for instance, as some of its parameters and buffers.

    A model whose tables fit no process is captured with tables that hold one number,
    ``torch.zeros(()).expand(rows, width)``, and gets its own here.

    Args:
        program: left as it is.
        tables: by name; of the same shapes and number formats. Other entries are left out, so that a whole state dict
            may be given.

    Raises:
        PlanError: a tensor has another shape or number format than the program's.
    """
    twin = program.clone()
    given: dict[str, Tensor] = {}
    for name, held in _state(twin.graph_module):
        if name not in tables:
            continue
        given[name] = tables[name].detach()
        if given[name].shape != held.shape or given[name].dtype != held.dtype:
            raise PlanError(
                f"'{name}' is {list(given[name].shape)} in {given[name].dtype}, the program's is {list(held.shape)} in "
                f"{held.dtype}"
            )
    _replace_state(twin.graph_module, given)
    return twin


def storage_of(tensor: Tensor) -> int:
    """What tells one tensor's memory from another's, while both are there."""
    return tensor.untyped_storage().data_ptr()


class _LargeOnMeta(TorchFunctionMode):
    """Makes large tensors on the meta device; all others as ever."""

    def __init__(self, large_bytes: int) -> None:
        super().__init__()
        self.large_bytes = large_bytes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _MADE_BY_SIZE and kwargs.get("out") is None:
            # Sizes of either form, defaults and number formats are torch's to understand.
            blank = func(*args, **{key: value for key, value in kwargs.items() if key not in _PLACE}, device="meta")
            if blank.nbytes >= self.large_bytes:
                return blank
        elif any(_is_meta(leaf) for leaf in pytree.tree_leaves((args, kwargs))):
            if "generator" in kwargs:
                kwargs["generator"] = None  # a generator of the CPU's would be refused, and nothing is drawn
            if not getattr(func, "__name__", "_").endswith("_"):  # what is written into keeps its place
                args, kwargs = pytree.tree_map(_on_meta, (args, kwargs))
        return func(*args, **kwargs)


def _on_meta(leaf: Any) -> Any:
    """What a large tensor is computed with has no values either."""
    return leaf.to("meta") if isinstance(leaf, Tensor) and leaf.dim() and not _is_meta(leaf) else leaf


def _is_meta(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type == "meta"


def _built(model: str | Factory, large_bytes: int) -> tuple[nn.Module, Inputs]:
    name = model if isinstance(model, str) else getattr(model, "__name__", repr(model))
    factory = import_factory(model) if isinstance(model, str) else model
    try:
        with _LargeOnMeta(large_bytes):
            module, example_inputs = model_of(name, factory)
    except ModelError as error:
        raise ModelError(
            f"{error} (it was called with tensors of {large_bytes:,} bytes or more on the meta device, where they have "
            "no values: a factory must not look at its tables' values, or give a module built on that device)"
        ) from error
    if any(_is_meta(leaf) for leaf in pytree.tree_leaves(example_inputs)):
        raise ModelError(f"the example inputs of '{name}' are larger than {large_bytes:,} bytes; give fewer rows")
    return module, example_inputs


def _give_weights(
    module: nn.Module, stored: Mapping[str, StoredTensor], large_bytes: int
) -> dict[int, tuple[StoredTensor, bool]]:
    """Gives a module the weights of a checkpoint, and stand-ins for the large ones.

    Returns:
        By storage: where the tensor lies in the checkpoint, and whether the module has a stand-in for it.
    """
    given: dict[int, tuple[StoredTensor, bool]] = {}
    made: dict[int, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name not in stored or id(tensor) in made:
            continue  # another name of a tensor that is there
        large = tensor.nbytes >= large_bytes and tensor.is_floating_point()
        nan = torch.full((), float("nan"), dtype=tensor.dtype) if large else None
        value = stored[name].tensor().to(tensor.dtype) if nan is None else nan.expand(tensor.shape)
        made[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        if value.nbytes:
            given[storage_of(value)] = stored[name], large
    for owner in module.modules():
        for held in (owner._parameters, owner._buffers):
            for name, each in list(held.items()):
                if each is not None and id(each) in made:
                    held[name] = made[id(each)]  # type: ignore[assignment]
    left = next((name for name, tensor in module.named_buffers() if _is_meta(tensor)), None)
    if left is not None:
        raise ModelError(f"buffer '{left}' is large and not in the checkpoint: its values are not known")
    return given


def _load_other_than_tables(program: Program, given: Mapping[int, tuple[StoredTensor, bool]]) -> AbsentTables:
    """Loads what is large and no table."""
    module = program.graph_module
    names = {site.parameter for site in find_sites(module) if site.kind is SiteKind.EMBEDDING}
    parts = parts_of(module)
    tables: dict[str, StoredTensor] = {}
    loaded: dict[str, StoredTensor] = {}
    wholes: dict[int, Tensor] = {}
    # The list keeps every stand-in's memory, so that no tensor that is loaded can lie there and be taken for it.
    for name, tensor in _state(module):
        place = storage_of(tensor)
        if place not in given:
            continue
        stored, absent = given[place]
        if absent and name in names:
            tables[name] = stored
            continue
        loaded[name] = stored
        if absent:
            if place not in wholes:  # several parts of one parameter share what is read
                wholes[place] = stored.tensor().to(tensor.dtype)
            _replace_state(module, {name: parts[name].of(wholes[place]) if name in parts else wholes[place]})
    return AbsentTables(program, tables, loaded)


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, by all names where they have several."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _replace_state(module: GraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Exchanges parameters and buffers of a graph for others of the same shapes; their nodes' values follow."""
    for name, tensor in tensors.items():
        prefix, _, leaf = name.rpartition(".")
        owner = module.get_submodule(prefix)
        held = owner._parameters.get(leaf)
        if held is not None:
            owner._parameters[leaf] = nn.Parameter(tensor, held.requires_grad)
        else:
            owner._buffers[leaf] = tensor
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target) in tensors:
            form = tensors[str(node.target)]
            with fake_mode(module.graph):
                node.meta["val"] = torch.empty_strided(form.shape, form.stride(), dtype=form.dtype, device=form.device)
