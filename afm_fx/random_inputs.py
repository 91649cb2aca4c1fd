"""Random inputs that a captured program accepts: ids inside their tables, lengths inside their sequences.

The graph itself says what an input column means. Running it once on the example inputs, every element of every input
is followed through the operators that move values (slice, view, cat, cast, ...) or shift them by constants. Where a
followed value is used as a row number (embedding, index, gather), the table's size bounds the input column it came
from; where it is compared with a constant such as a range of positions, it is a length. A column that is met nowhere
is dense if it floats, and otherwise drawn from the example's own values, which are known to be valid.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError
from afm_fx.program import Program
from passes.graph_tools import shape_of
from passes.lookups import BAGS

aten = torch.ops.aten

_MOVES: frozenset[Any] = frozenset(
    {
        aten.alias.default, aten.cat.default, aten.clone.default, aten.contiguous.default, aten.detach.default,
        aten.expand.default, aten.flatten.using_ints, aten.flip.default, aten.gather.default, aten.index.Tensor,
        aten.index_select.default, aten.lift_fresh_copy.default, aten.permute.default, aten.repeat.default,
        aten.reshape.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default,
        aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.stack.default, aten.t.default,
        aten.transpose.int, aten.unbind.int, aten.unflatten.int, aten.unsqueeze.default, aten.view.default,
        aten._unsafe_view.default, operator.getitem,
    }
)  # fmt: skip
"""Operators whose first argument is moved and never changed; their other arguments are sizes and positions."""

_KEEPS: frozenset[Any] = frozenset(
    {
        aten._to_copy.default, aten.to.dtype, aten.floor.default, aten.round.default, aten.trunc.default,
        aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
    }
)  # fmt: skip
"""Operators that leave a valid id as it is."""

_COMPARISONS: frozenset[Any] = frozenset({aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor})
_UNBOUNDED = float("inf")


@dataclass(frozen=True)
class InputRange:
    """What may be drawn for one flattened input tensor. Columns are its elements other than the batch axis.

    Attributes:
        name: the input's name in the graph.
        example: the example tensor, shape ``[batch, *columns]`` (``[*columns]`` without a batch axis).
        batched: whether axis 0 is the batch.
        lower: smallest valid whole number of each column, float64 ``[*columns]``; -inf where unbounded.
        upper: largest valid whole number of each column, float64 ``[*columns]``; inf where unbounded.
        whole: bool ``[*columns]``: the column carries whole numbers (integer dtype, or cast to one in the graph).
        starts: whether these are the positions at which bags begin: they ascend along axis 0, from 0.
    """

    name: str
    example: Tensor
    batched: bool
    lower: Tensor
    upper: Tensor
    whole: Tensor
    starts: bool = False

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draws ``rows`` rows (or one tensor of the example's shape, where there is no batch axis)."""
        example = (self.example if self.batched else self.example.unsqueeze(0)).cpu()
        count = rows if self.batched else 1
        shape = (count, *example.shape[1:])
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        rows_of_example = torch.randint(0, example.shape[0], shape, generator=generator)
        drawn = example.gather(0, rows_of_example)
        if example.dtype == torch.bool:
            drawn = uniform < 0.5
        elif example.is_floating_point():
            drawn = torch.where(self.whole, drawn, self._dense(example, shape, generator))
        bounded = self.lower.isfinite() & self.upper.isfinite()
        if bounded.any():
            ids = torch.floor(self.lower + uniform * (self.upper - self.lower + 1)).clamp(self.lower, self.upper)
            drawn = torch.where(bounded, _exact(ids.nan_to_num(), self.upper, example.dtype), drawn)
        drawn = (drawn if self.batched else drawn[0]).to(self.example.device)
        return _ascending(drawn) if self.starts else drawn

    def _dense(self, example: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal values; a column of zeros and ones stays one, a non-negative column stays non-negative."""
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        values = example.double()
        varied = values.amin(0) < values.amax(0)
        binary = varied & ((values == 0) | (values == 1)).all(0)
        non_negative = varied & (values.amin(0) >= 0)
        normal = torch.where(non_negative, normal.abs(), normal)
        return torch.where(binary, (normal > 0.5).double(), normal).to(example.dtype)


@dataclass(frozen=True)
class RandomInputs:
    """Draws random inputs for one program; made by :func:`random_inputs`.

    Attributes:
        ranges: one per flattened input tensor, in graph order.
    """

    ranges: tuple[InputRange, ...]
    _program: Program

    def draw(self, rows: int, *, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword inputs of ``rows`` rows, the same ones for the same seed.

        Raises:
            BatchError: the program's batch size is fixed to another number of rows.
        """
        program = self._program
        leaves, spec = pytree.tree_flatten((program.example_args, program.example_kwargs))
        fixed = {leaf.shape[0] for leaf, flag in zip(leaves, program.batched, strict=True) if flag}
        if rows < 1 or (not program.dynamic_batch and fixed and fixed != {rows}):
            raise BatchError(f"{rows} rows asked for, the program takes {fixed or 'at least 1'}")
        generator = torch.Generator().manual_seed(seed)
        drawn = iter([each.draw(rows, generator) for each in self.ranges])
        filled = [next(drawn) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return args, kwargs


def random_inputs(program: Program) -> RandomInputs:
    """Derives from the graph what each input column may hold.

    The graph is run once on the example inputs.

    Raises:
        BatchError: two uses of a column leave no id that is valid for both.
    """
    examples = example_call(program)
    leaves = pytree.tree_leaves(examples)
    flags = program.batched
    tracer = _OriginTracer(program, leaves)
    with torch.no_grad():
        tracer.run(*leaves, enable_io_processing=False)
        tracer.apply_lengths()
    ranges = []
    names = iter(program.input_names)
    for leaf, batched, start in zip(leaves, flags, tracer.starts, strict=True):
        name = next(names)
        if not isinstance(leaf, Tensor):
            continue
        shape = leaf.shape[1:] if batched else leaf.shape
        part = slice(start, start + _count(shape))
        lower, upper = tracer.lower[part].clone(), tracer.upper[part].clone()
        for bound in (each for each in program.id_bounds if each.input == name):
            # A packed table holds more rows than the tables that the ids are meant for.
            lower[bound.column] = bound.low
            upper[bound.column] = min(bound.high - 1, upper[bound.column].item())
        lower, upper = lower.reshape(shape), upper.reshape(shape)
        if bool((lower > upper).any()):
            raise BatchError(f"no id is valid for every table that input '{name}' is looked up in")
        whole = tracer.whole[part].reshape(shape)
        starts = bool(tracer.starts_bags[part].any())
        ranges.append(InputRange(name, leaf, batched, lower, upper, whole, starts))
    return RandomInputs(tuple(ranges), program)


def example_call(program: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The program's example inputs in the dtype that its graph computes in."""

    def cast(leaf: Any) -> Any:
        floats = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(program.dtype) if floats and program.dtype is not None else leaf

    args, kwargs = pytree.tree_map(cast, (program.example_args, program.example_kwargs))
    return args, kwargs


@dataclass(frozen=True)
class _Origin:
    """Where the elements of a value come from: ``value = input column [column] + shift``; column -1 is unknown."""

    column: Tensor
    shift: Tensor

    def map(self, function: Callable[[Tensor], Any]) -> Any:
        """Applies a move to both tensors; a move with several results gives several origins."""
        columns, shifts = function(self.column), function(self.shift)
        if isinstance(columns, Tensor):
            return _Origin(columns, shifts)
        return tuple(_Origin(column, shift) for column, shift in zip(columns, shifts, strict=True))

    def known(self) -> tuple[Tensor, Tensor]:
        """The known columns and their shifts, flat, on the CPU."""
        known = self.column >= 0
        return self.column[known].cpu(), self.shift[known].cpu()


class _OriginTracer(Interpreter):
    """Runs a graph on the example while following input columns to the tables that they index."""

    def __init__(self, program: Program, leaves: list[Any]) -> None:
        super().__init__(program.graph_module)
        self.origins: dict[Node, Any] = {}
        self.constant: set[Node] = set()
        self.starts: list[int] = []
        self._placeholders: dict[Node, _Origin | None] = {}
        total = 0
        sizes = [leaf.shape[0] for leaf, batched in zip(leaves, program.batched, strict=True) if batched]
        self._rows = max(sizes, default=1)
        for node, leaf, batched in zip(program.placeholders(), leaves, program.batched, strict=True):
            self.starts.append(total)
            if not isinstance(leaf, Tensor):
                self._placeholders[node] = None
                continue
            shape = leaf.shape[1:] if batched else leaf.shape
            columns = torch.arange(total, total + _count(shape), device=leaf.device).reshape(shape)
            shifts = torch.zeros(leaf.shape, dtype=torch.float64, device=leaf.device)
            self._placeholders[node] = _Origin(columns.expand(leaf.shape), shifts)
            total += _count(shape)
        self.lower = torch.full((total,), -_UNBOUNDED, dtype=torch.float64)
        self.upper = torch.full((total,), _UNBOUNDED, dtype=torch.float64)
        self.longest = torch.full((total,), _UNBOUNDED, dtype=torch.float64)
        self.whole = torch.zeros(total, dtype=torch.bool)
        self.starts_bags = torch.zeros(total, dtype=torch.bool)
        for start, leaf, batched in zip(self.starts, leaves, program.batched, strict=True):
            if isinstance(leaf, Tensor) and not leaf.is_floating_point():
                self.whole[start : start + _count(leaf.shape[1:] if batched else leaf.shape)] = True

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op == "placeholder":
            self.origins[n] = self._placeholders[n]
        elif n.op == "call_function":
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self._bound(n, args)
            self.origins[n] = self._follow(n, args, kwargs, value)
        if n.op == "get_attr" or (n.op == "call_function" and self._independent(n)):
            self.constant.add(n)
        return value

    def _independent(self, node: Node) -> bool:
        """Whether no input's content (its size does not count) reaches the node."""
        return node.target is aten.sym_size.int or all(source in self.constant for source in node.all_input_nodes)

    def _origin(self, argument: Any) -> Any:
        return self.origins.get(argument) if isinstance(argument, Node) else None

    def _follow(self, node: Node, args: Any, kwargs: Any, value: Any) -> Any:
        if node.target in _MOVES:
            return self._move(node, args, kwargs)
        origin = self._origin(node.args[0]) if node.args else None
        if node.target is aten.where.self:
            known = [self._origin(argument) for argument in node.args[1:3]]
            known = [each for each in known if isinstance(each, _Origin)]
            return known[0].map(lambda tensor: tensor.expand(value.shape)) if len(known) == 1 else None
        if node.target in (aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar):
            return self._shift(node, args, kwargs, value)
        if node.target in _KEEPS and isinstance(origin, _Origin):
            if not value.is_floating_point():
                self._mark_whole(origin)
            return origin if origin.column.shape == value.shape else None
        return None

    def _move(self, node: Node, args: Any, kwargs: Any) -> Any:
        moved = node.args[0]
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        if isinstance(moved, (list, tuple)):
            origins = [self._origin(each) for each in moved]
            if not any(isinstance(each, _Origin) for each in origins):
                return None
            known = [
                each if isinstance(each, _Origin) else _unknown(value)
                for each, value in zip(origins, args[0], strict=True)
            ]
            return _Origin(
                target([each.column for each in known], *args[1:], **kwargs),
                target([each.shift for each in known], *args[1:], **kwargs),
            )
        origin = self._origin(moved)
        if node.target is operator.getitem:
            return origin[args[1]] if isinstance(origin, tuple) else None
        if not isinstance(origin, _Origin):
            return None
        return origin.map(lambda tensor: target(tensor, *args[1:], **kwargs))

    def _shift(self, node: Node, args: Any, kwargs: Any, value: Any) -> _Origin | None:
        """``x + c`` and ``x - c`` by a constant shift the ids; ``c + x`` too."""
        left, right = (self._origin(argument) for argument in node.args[:2])
        sign = 1 if node.target in (aten.add.Tensor, aten.add.Scalar) else -1
        if kwargs.get("alpha", 1) != 1 or len(args) > 2:
            return None
        if isinstance(left, _Origin) and self._is_constant(node.args[1]):
            return self._shifted(left, sign * _as_double(args[1]), value)
        if isinstance(right, _Origin) and self._is_constant(node.args[0]) and sign == 1:
            return self._shifted(right, _as_double(args[0]), value)
        return None

    @staticmethod
    def _shifted(origin: _Origin, by: Tensor, value: Tensor) -> _Origin:
        return _Origin(origin.column.expand(value.shape), (origin.shift + by).expand(value.shape))

    def _is_constant(self, argument: Any) -> bool:
        return argument in self.constant if isinstance(argument, Node) else isinstance(argument, (int, float))

    def _bound(self, node: Node, args: Any) -> None:
        """Narrows the range of every column that the node uses as a position."""
        if node.target is aten.embedding.default:
            self._limit(node.args[1], 0, args[0].shape[0] - 1)
        elif node.target in BAGS:
            self._limit(node.args[1], 0, args[0].shape[0] - 1)
            self._limit(node.args[2], 0, self._fewest_ids(node.args[1], args[1]))
            origin = self._origin(node.args[2])
            if isinstance(origin, _Origin):
                self.starts_bags[origin.known()[0]] = True
        elif node.target in (aten.index_select.default, aten.gather.default):
            self._limit(node.args[2], 0, args[0].shape[args[1]] - 1)
        elif node.target is aten.index.Tensor:
            for axis, index in enumerate(node.args[1]):  # type: ignore[arg-type]
                if isinstance(index, Node) and args[1][axis].dtype != torch.bool:
                    self._limit(index, 0, args[0].shape[axis] - 1)
        elif node.target in _COMPARISONS:
            for one, other, constant in ((0, 1, args[1]), (1, 0, args[0])):
                origin = self._origin(node.args[one])
                whole = isinstance(args[one], Tensor) and not args[one].is_floating_point()
                if isinstance(origin, _Origin) and whole and self._is_constant(node.args[other]):
                    columns, shifts = origin.known()
                    self.longest.scatter_reduce_(0, columns, float(constant.max()) + 1 - shifts, "amin")

    def _fewest_ids(self, ids: Any, example: Tensor) -> int:
        """How many ids there are at least, whatever the batch size: those of one row, where they grow with it."""
        shape = shape_of(ids) if isinstance(ids, Node) else None
        count = int(example.shape[0])
        return count if shape is None or isinstance(shape[0], int) else count // self._rows

    def _limit(self, argument: Any, lowest: int, highest: int) -> None:
        origin = self._origin(argument)
        if isinstance(origin, _Origin):
            columns, shifts = origin.known()
            self.lower.scatter_reduce_(0, columns, (lowest - shifts).clamp(min=0), "amax")
            self.upper.scatter_reduce_(0, columns, highest - shifts, "amin")
            self.whole[columns] = True

    def apply_lengths(self) -> None:
        """Bounds the columns that are lengths: compared with positions, and used as a position nowhere."""
        lengths = self.upper.isinf() & self.longest.isfinite()
        self.lower[lengths] = torch.minimum(torch.ones(()).double(), self.longest[lengths])
        self.upper[lengths] = self.longest[lengths]

    def _mark_whole(self, origin: _Origin) -> None:
        self.whole[origin.known()[0]] = True


def _ascending(starts: Tensor) -> Tensor:
    """The same positions in order, the first one 0."""
    ordered = starts.sort(dim=0).values
    ordered[:1] = 0
    return ordered


def _unknown(value: Tensor) -> _Origin:
    return _Origin(
        torch.full(value.shape, -1, dtype=torch.int64, device=value.device),
        torch.zeros(value.shape, dtype=torch.float64, device=value.device),
    )


def _count(shape: tuple[int, ...] | torch.Size) -> int:
    return int(torch.Size(shape).numel())


def _as_double(value: Any) -> Tensor:
    return value.double() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)


def _exact(ids: Tensor, upper: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts ids; where a floating dtype is too coarse and rounds beyond the table, steps down to a number inside."""
    cast = ids.to(dtype)
    if not dtype.is_floating_point:
        return cast
    return torch.where(cast.double() > upper, (ids * (1 - torch.finfo(dtype).eps)).to(dtype), cast)
