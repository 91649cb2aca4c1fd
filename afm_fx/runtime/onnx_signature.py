"""Signs exported files: what wrote them, from which plan and how, and which inputs and outputs carry the batch."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from afm_fx.program import PLAN_KEY, PRODUCER, RECIPE_KEY, FileRecipe, Program, dtype_name
from afm_fx.runtime.artifact import FileValue
from afm_fx.version import __version__
from passes.graph import shape_of

MADE_BY = f"{PRODUCER} {__version__}"


def sign(model: ir.Model, note: FileRecipe) -> None:
    """Writes a recipe, the plan's digest and the producer into a model."""
    model.producer_name, model.producer_version = PRODUCER, __version__
    model.metadata_props[RECIPE_KEY] = note.to_json()
    model.metadata_props.pop(PLAN_KEY, None)
    if note.recipe.plan is not None:
        model.metadata_props[PLAN_KEY] = note.recipe.plan


def input_values(program: Program) -> tuple[FileValue, ...]:
    """The inputs of a program's file, one per input tensor, in order."""
    values = []
    leaves = program.cast_inputs(program.example_leaves)
    for name, leaf, batched in zip(program.leaf_names(), leaves, program.batched, strict=True):
        if isinstance(leaf, Tensor):
            free = batched and program.dynamic_batch
            shape = ("batch", *leaf.shape[1:]) if free else tuple(leaf.shape)
            values.append(FileValue(name, dtype_name(leaf), shape, batched))
    return tuple(values)


def program_recipe(program: Program, outputs: Sequence[str]) -> FileRecipe:
    """The note for a program's file."""
    batched = [value for value in input_values(program) if value.batched]
    known = batched_outputs(program)
    results = None if known is None else tuple(name for name, flag in zip(outputs, known, strict=True) if flag)
    return FileRecipe(
        program.recipe,
        made_by=MADE_BY,
        exporter=f"torch {torch.__version__.partition('+')[0]}",  # the same file from a CPU and a CUDA build
        batch_size=None if program.dynamic_batch else program.example_rows,
        batched_inputs=tuple(value.name for value in batched),
        batched_outputs=results,
    )


def batched_outputs(program: Program) -> tuple[bool, ...] | None:
    """For every output tensor, whether its axis 0 is the batch; None where the graph does not tell."""
    shapes = [shape_of(node) for node, flag in zip(program.placeholders(), program.batched, strict=True) if flag]
    symbols = {str(shape[0]) for shape in shapes if shape}
    (result,) = (node for node in program.graph_module.graph.nodes if node.op == "output")
    found = []
    for leaf in pytree.tree_leaves(result.args[0]):
        if not isinstance(leaf, Node):
            continue
        shape = shape_of(leaf)
        if shape is None:
            return None
        found.append(bool(shape) and str(shape[0]) in symbols)
    return tuple(found)
