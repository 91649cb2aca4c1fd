"""Builds the nodes that work on codes: column picks, views, decoders, absorbed weights.

The same builder serves the rewrite and the analysis. In a *dry* build every tensor is a fake one (shapes, no data),
so that the analysis is the rewrite itself on a throw-away graph and cannot disagree with it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.graph_tools import aten, call, constant_of, fake_mode, parameter, value_of
from passes.low_rank_value import Block, LowRankValue, Move, merge_identities, repeated_row
from passes.parameter_ledger import Extent, Record, extent_of

RESTORE = "restore"


class CodeBuilder:
    """Emits nodes before a given node of one graph.

    Args:
        module: the graph module to edit.
        dry: build with fake tensors.
    """

    def __init__(self, module: GraphModule, *, dry: bool = False) -> None:
        self.module = module
        self.graph = module.graph
        self.dry = dry
        self.records: list[Record] = []
        self.absorbed: dict[Any, tuple[Node, Node | None]] = {}
        self._decoders: dict[tuple[str, tuple[int, ...] | None], tuple[Node, Node | None]] = {}
        self._constants: dict[Node, Tensor | None] = {}

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """The mode in which tensors are computed: fake in a dry build, without gradients otherwise."""
        with fake_mode(self.graph) if self.dry else contextlib.nullcontext(), torch.no_grad():
            yield

    def constant(self, node: Any) -> Tensor | None:
        """The value of a node that depends on parameters and constants only, None for any other."""
        if not isinstance(node, Node):
            return None
        if node not in self._constants:
            self._constants[node] = self._evaluate(node)
        return self._constants[node]

    def _evaluate(self, node: Node) -> Tensor | None:
        if node.op == "get_attr":
            tensor = constant_of(self.module, node)
            return value_of(node) if self.dry and tensor is not None else tensor
        operands = node.all_input_nodes
        if not operands or not callable(node.target):
            return None
        if any(self.constant(operand) is None for operand in operands):
            return None
        args, kwargs = pytree.tree_map(
            lambda leaf: self.constant(leaf) if isinstance(leaf, Node) else leaf, (node.args, node.kwargs)
        )
        result = node.target(*args, **kwargs)
        return result if isinstance(result, Tensor) else None

    def emit(self, target: Callable[..., Any], *args: Any, rule: str, like: Node) -> Node:
        """One node at the insertion point, standing for ``like``."""
        return call(self.graph, target, *args, rule=rule, like=like)

    def new_parameter(
        self, name: str, tensor: Tensor, dtype: torch.dtype, record: Record, *, rule: str, trainable: bool = True
    ) -> Node:
        """A parameter, counted in the ledger."""
        self.records.append(record)
        return parameter(self.module, name, tensor.to(dtype), rule=rule, trainable=trainable)

    def sizes(self, code: Node, lead: Sequence[Any], like: Node, *tail: int) -> list[Any]:
        """The arguments of a view to ``[*lead, *tail]``, where ``lead`` are leading axes of ``code``."""
        symbolic = [axis for axis, size in enumerate(lead) if not isinstance(size, int)]
        if len(symbolic) <= 1:
            return [-1 if axis in symbolic else size for axis, size in enumerate(lead)] + list(tail)
        named = [
            self.emit(aten.sym_size.int, code, axis, rule="sizes", like=like) if axis in symbolic else size
            for axis, size in enumerate(lead)
        ]
        return [*named, *tail]

    def view(self, code: Node, lead: Sequence[Any], like: Node, *tail: int, rule: str) -> Node:
        """``code`` seen as ``[*lead, *tail]``; ``lead`` must be leading axes of ``code``."""
        shape = tuple(value_of(code).shape)
        if len(shape) == len(lead) + len(tail) and shape[len(lead) :] == tail:
            return code
        return self.emit(aten.reshape.default, code, self.sizes(code, lead, like, *tail), rule=rule, like=like)

    def pick(
        self, value: LowRankValue, move: Move, trailing: tuple[int, ...], *, rule: str, like: Node
    ) -> LowRankValue:
        """The value after a move: the code columns the move takes, under the new blocks."""
        runs = move.column_runs()
        code = value.code
        if runs != [(0, value.code_width)]:
            axis = len(value.lead)
            pieces = [self.emit(aten.slice.Tensor, code, axis, first, end, rule=rule, like=like) for first, end in runs]
            code = pieces[0] if len(pieces) == 1 else self.emit(aten.cat.default, pieces, axis, rule=rule, like=like)
        return LowRankValue(code, value.lead, trailing, merge_identities(move.blocks))

    def pull(self, value: LowRankValue, axes: int, *, rule: str, like: Node) -> LowRankValue | None:
        """Makes the last ``axes`` leading axes feature axes; None where their sizes are not static."""
        if axes == 0:
            return value
        pulled = value.lead[-axes:]
        if not all(isinstance(size, int) for size in pulled):
            return None
        repeats = math.prod(pulled)
        lead = value.lead[:-axes]
        code = self.view(value.code, lead, like, repeats * value.code_width, rule=rule)
        return LowRankValue(code, lead, (*pulled, *value.trailing), merge_identities(value.blocks * repeats))

    def push(self, value: LowRankValue, *, rule: str, like: Node) -> LowRankValue | None:
        """Leaves one feature axis by making the others leading axes; None where their decoders differ."""
        outer = value.trailing[:-1]
        if not outer:
            return value
        row = repeated_row(value.blocks, value.trailing[-1])
        if row is None:
            return None
        width = sum(block.rank for block in row)
        code = self.view(value.code, value.lead, like, *outer, width, rule=rule)
        return LowRankValue(code, (*value.lead, *outer), value.trailing[-1:], row)

    def dense(self, node: Node, axes: int) -> LowRankValue | None:
        """A dense node as a value of identity blocks over its last ``axes`` axes; None where they are not static."""
        shape = tuple(value_of(node).shape)
        lead, trailing = shape[: len(shape) - axes], shape[len(shape) - axes :]
        if not all(isinstance(size, int) for size in trailing):
            return None
        features = math.prod(trailing)
        return LowRankValue(node, lead, trailing, (Block(features, features),))

    def absorbed_weight(
        self, weight: Tensor, bias: Tensor | None, blocks: Sequence[Block]
    ) -> tuple[Tensor, Tensor | None]:
        """The Linear on codes: ``W_i A_i`` side by side and ``b + sum_i W_i o_i``, in float64."""
        pieces, first = [], 0
        total = None if bias is None else bias.to(torch.float64)
        for block in blocks:
            piece = weight[:, first : first + block.width].to(torch.float64)
            first += block.width
            if block.offset is not None:
                carried = piece @ block.offset.to(piece.device)
                total = carried if total is None else total + carried
            pieces.append(piece if block.decoder is None else piece @ block.decoder.to(piece.device))
        return torch.cat(pieces, dim=1), total

    def restore(self, value: LowRankValue, like: Node) -> Node:
        """Decodes a value: ``A_i z_i + o_i`` for every block, in the value's logical shape."""
        lead, axis = value.lead, len(value.lead)
        parts, column = [], 0
        for run in _runs(value.blocks):
            width = sum(block.rank for block in run)
            code = value.code
            if width != value.code_width:
                code = self.emit(aten.slice.Tensor, code, axis, column, column + width, rule=RESTORE, like=like)
            column += width
            parts.append(code if run[0].is_identity else self._decode(code, lead, run, like))
        whole = parts[0] if len(parts) == 1 else self.emit(aten.cat.default, parts, axis, rule=RESTORE, like=like)
        return self.view(whole, lead, like, *value.trailing, rule=RESTORE)

    def _decode(self, code: Node, lead: Sequence[Any], run: Sequence[Block], like: Node) -> Node:
        """Decodes a run of blocks of equal width and rank to ``[*lead, features]``."""
        first, count = run[0], len(run)
        features = sum(block.width for block in run)
        if count == 1:
            return self.emit(aten.linear.default, code, *self._decoder(first, code), rule=RESTORE, like=like)
        rows = self.view(code, lead, like, count, first.rank, rule=RESTORE)
        if all(block.same_decoder(first) for block in run):
            decoded = self.emit(aten.linear.default, rows, *self._decoder(first, code), rule=RESTORE, like=like)
        else:
            pairs = [self._decoder(block, code) for block in run]
            stacked = self._stacked([decoder for decoder, _ in pairs], like, first.width, first.rank)
            decoded = self.emit(aten.einsum.default, "...kr,knr->...kn", [rows, stacked], rule=RESTORE, like=like)
            decoded = self._add_offsets(decoded, [offset for _, offset in pairs], first.width, code, like)
        return self.view(decoded, lead, like, features, rule=RESTORE)

    def _add_offsets(self, decoded: Node, offsets: list[Node | None], width: int, code: Node, like: Node) -> Node:
        if all(offset is None for offset in offsets):
            return decoded
        zero = None
        rows: list[Node] = []
        for offset in offsets:
            if offset is None:
                dtype = value_of(code).dtype
                zero = zero or self.emit_zeros(width, dtype, like)
            row = zero if offset is None else offset
            if row is not None:
                rows.append(row)
        stacked = self._stacked(rows, like, width)
        return self.emit(aten.add.Tensor, decoded, stacked, rule=RESTORE, like=like)

    def _stacked(self, parts: Sequence[Node], like: Node, *shape: int) -> Node:
        """Constants of one shape as one constant with a new first axis (a cat: one node where a stack exports many)."""
        joined = self.emit(aten.cat.default, list(parts), rule=RESTORE, like=like)
        return self.emit(aten.reshape.default, joined, [len(parts), *shape], rule=RESTORE, like=like)

    def emit_zeros(self, width: int, dtype: torch.dtype, like: Node) -> Node:
        """A constant of zeros [width]."""
        node = self.graph.call_function(aten.zeros.default, ([width],), {"dtype": dtype})
        with fake_mode(self.graph):
            node.meta["val"] = torch.zeros(width, dtype=dtype)
        node.meta.update({key: like.meta[key] for key in ("stack_trace", "nn_module_stack") if key in like.meta})
        return node

    def _decoder(self, block: Block, code: Node) -> tuple[Node, Node | None]:
        """The decoder [width, rank] and offset [width] of a block as parameters, made once per site."""
        if block.site is None or block.decoder is None:
            raise ValueError("an identity block has no decoder")
        key = (block.site, block.rows)
        if key not in self._decoders:
            dtype = value_of(code).dtype
            width, needs = Extent(block.width), frozenset({block.site})
            name = f"{block.site}.decoder"
            matrix = self.new_parameter(
                f"{name}.weight", block.decoder, dtype, Record(width, extent_of([block]), needs), rule=RESTORE
            )
            offset = None
            if block.offset is not None:
                record = Record(width, Extent(1), needs)
                offset = self.new_parameter(f"{name}.bias", block.offset, dtype, record, rule=RESTORE)
            self._decoders[key] = (matrix, offset)
        return self._decoders[key]


def _runs(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Maximal runs of factored blocks of equal width and rank, and of identity blocks."""
    run: list[Block] = []
    for block in blocks:
        alike = run and (
            (block.is_identity and run[0].is_identity)
            or (
                not block.is_identity
                and not run[0].is_identity
                and (block.width, block.rank) == (run[0].width, run[0].rank)
            )
        )
        if run and not alike:
            yield run
            run = []
        run.append(block)
    if run:
        yield run
