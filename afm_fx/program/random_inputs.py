"""Random inputs that a captured program accepts: ids inside their tables, lengths inside their sequences.

The graph itself says what an input column means. Running it once on the example inputs, every element of every input
is followed through the operators that move values (slice, view, cat, cast, ...) or shift them by constants. Where a
followed value is used as a row number (embedding, index, gather), the table's size bounds the input column it came
from; where it is compared with a constant such as a range of positions, it is a length. A column that is met nowhere
is dense if it floats, and otherwise drawn from the example's own values, which are known to be valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError
from afm_fx.program.program import Program
from afm_fx.program.watched_run import WatchedRun
from passes.graph import KEEPS_IDS, MOVES, aten, run_on_positions, shape_of
from passes.sites import BAGS

_SHIFTS: dict[Any, int] = {aten.add.Tensor: 1, aten.add.Scalar: 1, aten.sub.Tensor: -1, aten.sub.Scalar: -1}
"""Operators that shift ids by a constant, with its sign."""

_KEEPS = KEEPS_IDS - MOVES - frozenset(_SHIFTS)
_COMPARISONS: frozenset[Any] = frozenset({aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor})
_UNBOUNDED = float("inf")


@dataclass(frozen=True)
class InputRange:
    """What may be drawn for one flattened input tensor. Columns are its elements other than the batch axis.

    Attributes:
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
        fixed = None if program.dynamic_batch else program.example_rows
        if rows < 1 or rows != (fixed or rows):
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
    leaves = program.cast_inputs(program.example_leaves)
    tracer = _OriginTracer(program, leaves)
    ranges = []
    for name, leaf, batched, start in zip(program.input_names, leaves, program.batched, tracer.starts, strict=True):
        if not isinstance(leaf, Tensor):
            continue
        shape = leaf.shape[1:] if batched else leaf.shape
        part = slice(start, start + shape.numel())
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


@dataclass(frozen=True)
class _Origin:
    """Where the elements of a value come from: ``value = input column [column] + shift``; column -1 is unknown."""

    column: Tensor
    shift: Tensor

    def expand(self, shape: torch.Size) -> _Origin:
        return _Origin(self.column.expand(shape), self.shift.expand(shape))

    def known(self) -> tuple[Tensor, Tensor]:
        """The known columns and their shifts, flat, on the CPU."""
        known = self.column >= 0
        return self.column[known].cpu(), self.shift[known].cpu()


class _OriginTracer:
    """Runs a graph on the example while following input columns to the tables that they index."""

    def __init__(self, program: Program, leaves: list[Any]) -> None:
        self.origins: dict[Node, Any] = {}
        self.constant: set[Node] = set()
        self.starts: list[int] = []
        self._run = WatchedRun(program.graph_module, self._watch)
        total = 0
        self._rows = program.example_rows or 1
        whole = []
        for node, leaf, batched in zip(program.placeholders(), leaves, program.batched, strict=True):
            self.starts.append(total)
            if not isinstance(leaf, Tensor):
                continue
            shape = leaf.shape[1:] if batched else leaf.shape
            columns = torch.arange(total, total + shape.numel(), device=leaf.device).reshape(shape)
            shifts = torch.zeros(leaf.shape, dtype=torch.float64, device=leaf.device)
            self.origins[node] = _Origin(columns.expand(leaf.shape), shifts)
            total += shape.numel()
            whole += [not leaf.is_floating_point()] * shape.numel()
        self.lower = torch.full((total,), -_UNBOUNDED, dtype=torch.float64)
        self.upper = torch.full((total,), _UNBOUNDED, dtype=torch.float64)
        self.longest = torch.full((total,), _UNBOUNDED, dtype=torch.float64)
        self.whole = torch.tensor(whole, dtype=torch.bool)
        self.starts_bags = torch.zeros(total, dtype=torch.bool)
        with torch.no_grad():
            self._run.run_flat(leaves)
        self._bound_lengths()

    def _watch(self, node: Node, value: Any) -> None:
        if node.op == "call_function":
            args, kwargs = self._run.fetch_args_kwargs_from_env(node)
            self._bound(node, args)
            origin = self._follow(node, args, kwargs, value)
            if origin is not None:
                self.origins[node] = origin
        if node.op == "get_attr" or (node.op == "call_function" and self._independent(node)):
            self.constant.add(node)

    def _independent(self, node: Node) -> bool:
        """Whether no input's content (its size does not count) reaches the node."""
        return node.target is aten.sym_size.int or all(source in self.constant for source in node.all_input_nodes)

    def _origin(self, argument: Any) -> _Origin | None:
        origin = self.origins.get(argument) if isinstance(argument, Node) else None
        return origin if isinstance(origin, _Origin) else None

    def _follow(self, node: Node, args: Any, kwargs: Any, value: Any) -> Any:
        if node.target in MOVES:
            return self._moved(node)
        if node.target is aten.where.self:
            known = [origin for argument in node.args[1:3] if (origin := self._origin(argument)) is not None]
            return known[0].expand(value.shape) if len(known) == 1 else None
        if node.target in _SHIFTS:
            return self._shifted(node, args, kwargs, value)
        origin = self._origin(node.args[0]) if node.args and node.target in _KEEPS else None
        if origin is None:
            return None
        if not value.is_floating_point():
            self.whole[origin.known()[0]] = True
        return origin if origin.column.shape == value.shape else None

    def _moved(self, node: Node) -> _Origin | tuple[_Origin, ...] | None:
        """Where the elements of a move's result come from: the move, done to the origins of what it moves."""
        moved = [leaf for leaf in pytree.tree_leaves(node.args[0]) if isinstance(leaf, Node)]
        if not any(leaf in self.origins for leaf in moved):
            return None

        def part(name: str, unknown: float) -> Any:
            def of(leaf: Node) -> Any:
                value, origin = self._run.env[leaf], self.origins.get(leaf)
                if leaf not in moved:
                    return value
                if isinstance(origin, tuple):
                    return [getattr(one, name) for one in origin]
                return value.new_full(value.shape, unknown, dtype=kind) if origin is None else getattr(origin, name)

            kind = torch.int64 if name == "column" else torch.float64
            return run_on_positions(node, of)

        columns, shifts = part("column", -1), part("shift", 0)
        if isinstance(columns, list | tuple):
            return tuple(map(_Origin, columns, shifts))
        return None if columns is None else _Origin(columns, shifts)

    def _shifted(self, node: Node, args: Any, kwargs: Any, value: Any) -> _Origin | None:
        """``x + c`` and ``x - c`` by a constant shift the ids; ``c + x`` too."""
        sign = _SHIFTS[node.target]
        if kwargs.get("alpha", 1) != 1 or len(args) > 2:
            return None
        for ids, constant in ((0, 1), (1, 0)) if sign == 1 else ((0, 1),):
            origin = self._origin(node.args[ids])
            if origin is not None and self._is_constant(node.args[constant]):
                by = torch.as_tensor(args[constant], dtype=torch.float64, device=origin.shift.device)
                return _Origin(origin.column, origin.shift + sign * by).expand(value.shape)
        return None

    def _is_constant(self, argument: Any) -> bool:
        return argument in self.constant if isinstance(argument, Node) else isinstance(argument, (int, float))

    def _bound(self, node: Node, args: Any) -> None:
        """Narrows the range of every column that the node uses as a position."""
        if node.target is aten.embedding.default:
            self._limit(node.args[1], 0, args[0].shape[0] - 1)
        elif node.target in BAGS:
            self._limit(node.args[1], 0, args[0].shape[0] - 1)
            self._limit(node.args[2], 0, self._fewest_ids(node.args[1], args[1]))
            if (origin := self._origin(node.args[2])) is not None:
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
                if origin is not None and whole and self._is_constant(node.args[other]):
                    columns, shifts = origin.known()
                    self.longest.scatter_reduce_(0, columns, float(constant.max()) + 1 - shifts, "amin")

    def _fewest_ids(self, ids: Any, example: Tensor) -> int:
        """How many ids there are at least, whatever the batch size: those of one row, where they grow with it."""
        shape = shape_of(ids) if isinstance(ids, Node) else None
        count = int(example.shape[0])
        return count if shape is None or isinstance(shape[0], int) else count // self._rows

    def _limit(self, argument: Any, lowest: int, highest: int) -> None:
        origin = self._origin(argument)
        if origin is not None:
            columns, shifts = origin.known()
            self.lower.scatter_reduce_(0, columns, (lowest - shifts).clamp(min=0), "amax")
            self.upper.scatter_reduce_(0, columns, highest - shifts, "amin")
            self.whole[columns] = True

    def _bound_lengths(self) -> None:
        """Bounds the columns that are lengths: compared with positions, and used as a position nowhere."""
        lengths = self.upper.isinf() & self.longest.isfinite()
        self.lower[lengths] = torch.minimum(torch.ones(()).double(), self.longest[lengths])
        self.upper[lengths] = self.longest[lengths]


def _ascending(starts: Tensor) -> Tensor:
    """The same positions in order, the first one 0."""
    ordered = starts.sort(dim=0).values
    ordered[:1] = 0
    return ordered


def _exact(ids: Tensor, upper: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts ids; where a floating dtype is too coarse and rounds beyond the table, steps down to a number inside."""
    cast = ids.to(dtype)
    if not dtype.is_floating_point:
        return cast
    return torch.where(cast.double() > upper, (ids * (1 - torch.finfo(dtype).eps)).to(dtype), cast)
