"""Gives a program typed inputs: ids as int64, features as floats, instead of one float matrix that holds both."""

from __future__ import annotations

import keyword
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from afm_fx.program.capture import COLLISION
from afm_fx.program.input_mapping import NO_TENSOR, InputMapping, MappedInput, OriginalInputs, dtype_name
from afm_fx.program.program import Program, require_program
from passes.graph import clone_graph_module, value_of
from passes.serving import SplitInput, SplitInputs
from passes.sites import IdBound, coarse_ids, site_name


def split_inputs(program: Program) -> Program:
    """The program with typed inputs, or as it is where no float input carries ids.

    A float input whose columns are cast to integers becomes ``sparse``, int64 ``[batch, ids]``, and ``dense``,
    ``[batch, features]`` in its own number format (``<input>_sparse`` and ``<input>_dense`` where there are several).
    A column that is read both as an id and as a float number is in both; one that nothing reads is in neither. An
    input with nothing but ids keeps its shape and becomes ``sparse`` alone. All other inputs stay.

    The result takes one dict of all its inputs by name; :meth:`Program.convert_inputs` makes it from a batch of the
    original's inputs. The parameters are shared with the program given, which is left as it is.
    """
    require_program(program, "afm_fx.split_inputs")
    if program.original_inputs is not None:
        return program
    names = program.leaf_names()
    keywords = {
        graph_name: name if name.isidentifier() and not keyword.iskeyword(name) else graph_name
        for graph_name, name in zip(program.input_names, names, strict=True)
    }
    split = SplitInputs(keywords)
    module = split(clone_graph_module(program.graph_module)).graph_module
    if not split.made:
        return program
    shown = dict(zip(program.input_names, names, strict=True))
    bounds = _translated(program.id_bounds, split.made)
    bounded = {(each.input, each.column) for each in bounds}
    bounds = (*bounds, *(each for each in split.bounds if (each.input, each.column) not in bounded))
    made = {each.name: each for each in split.made}
    inputs = []
    for node in (node for node in module.graph.nodes if node.op == "placeholder"):
        value, new = value_of(node), made.get(node.name)
        name = keywords.get(node.name, node.name)
        source = shown[node.name if new is None else new.source]
        columns = None if new is None else tuple(new.columns)
        inputs.append(_mapped(name, value, source, columns))
    leaves = program.example_leaves
    originals = tuple(_mapped(name, leaf, name, None) for name, leaf in zip(names, leaves, strict=True))
    known = tuple(
        replace(bound, input=keywords.get(bound.input, bound.input), table=site_name(bound.table))
        for bound in bounds
        if bound.input in made
    )
    before = OriginalInputs(
        InputMapping(originals, tuple(inputs), known),
        names,
        program.example_args,
        program.example_kwargs,
        program.single_dict_argument,
    )
    flags = dict(zip(names, program.batched, strict=True))
    return replace(
        program,
        graph_module=module,
        example_args=(),
        example_kwargs=before.mapping.convert(dict(zip(names, leaves, strict=True)), check=False),
        batched=tuple(flags[each.source] for each in inputs),
        single_dict_argument=False,
        id_bounds=bounds,
        original_inputs=before,
        warnings=_without_collisions(program, module),
        recipe=program.recipe.then("typed inputs"),
    )


def _mapped(name: str, value: Any, source: str, columns: tuple[int, ...] | None) -> MappedInput:
    if not isinstance(value, Tensor):
        return MappedInput(name, NO_TENSOR, (), source, columns)
    return MappedInput(name, dtype_name(value), tuple(map(int, value.shape[1:])), source, columns)


def _translated(bounds: tuple[IdBound, ...], made: tuple[SplitInput, ...]) -> tuple[IdBound, ...]:
    """The same bounds on the inputs that the columns are in now."""
    places = {
        (each.source, column): (each.name, place)
        for each in made
        if each.ids
        for place, column in enumerate(each.columns)
    }
    split = {each.source for each in made}
    translated = []
    for bound in bounds:
        if bound.input not in split:
            translated.append(bound)
        elif (bound.input, bound.column) in places:
            name, place = places[bound.input, bound.column]
            translated.append(replace(bound, input=name, column=place))
    return tuple(translated)


def _without_collisions(program: Program, module: GraphModule) -> tuple[str, ...]:
    """The program's warnings, without those on colliding ids where no table's ids travel as floats any more."""
    if any(True for _ in coarse_ids(module)):
        return program.warnings
    return tuple(text for text in program.warnings if COLLISION not in text)
