"""The passes in a deployment compiler's pass manager, between its own passes.

``python -m examples.pass_manager`` compresses a model with ``afm_fx`` on generated clicks, then exports it with plain
``torch.export`` and runs: a house pass, the passes that apply the plan of ``compress``, another house pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager, this_before_that_pass_constraint

import afm_fx
import passes
from examples.click_model import CLICKS, click_model

aten = torch.ops.aten
Pass = Callable[..., PassResult | None]


def square_by_product(module: GraphModule) -> PassResult:
    """A pass of the house: replaces ``x ** 2`` with ``x * x``; the new node takes the old one's ``meta``."""
    changed = False
    for node in list(module.graph.nodes):
        if node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
            with module.graph.inserting_before(node):
                product = module.graph.call_function(aten.mul.Tensor, (node.args[0], node.args[0]))
            product.meta = node.meta.copy()
            node.replace_all_uses_with(product)
            module.graph.erase_node(node)
            changed = True
    return PassResult(module, changed)


class CountTables:
    """A pass of the house that only looks: the bytes of the tables that are looked up, once for every run."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, module: GraphModule) -> PassResult:
        """Counts; changes nothing."""
        tables = {node.args[0] for node in module.graph.nodes if node.target is aten.embedding.default}
        values = [table.meta["val"] for table in tables]
        self.counts.append(sum(value.numel() * value.element_size() for value in values))
        return PassResult(module, modified=False)


def in_order(manager_passes: Sequence[Pass]) -> list[Callable[[Pass, Pass], bool]]:
    """Constraints that keep passes in this order, whatever else the manager sorts between them."""
    return [this_before_that_pass_constraint(*pair) for pair in itertools.pairwise(manager_passes)]


def main() -> None:
    """Compresses, exports, runs the pass manager, compares."""
    torch.manual_seed(0)
    model, example = click_model()
    data = CLICKS.draw(20_000)
    rows = {"ids": torch.from_numpy(data.ids), "dense": torch.from_numpy(data.dense)}
    plan = afm_fx.compress(model, [rows], afm_fx.Budget(parameters=0.3), example).plan

    batch = torch.export.Dim("batch", min=2)
    shapes = {name: {0: batch} for name in example}
    exported = torch.export.export(model.eval(), (), example, dynamic_shapes=shapes)
    module = exported.run_decompositions({}).module()

    before, after = CountTables(), CountTables()
    order: list[Pass] = [before, square_by_product, *passes.pipeline(plan), after]
    manager = PassManager(order, in_order(order), steps=2, run_checks_after_each_pass=True)
    low_rank = manager(module).graph_module

    few = {name: column[:1_000] for name, column in rows.items()}
    with torch.no_grad():
        difference = float((low_rank(**few) - model(**few)).abs().max())
    made = sum("afm_fx" in node.meta for node in low_rank.graph.nodes)
    print(f"{len(low_rank.graph.nodes)} nodes, {made} of them made by the passes of the plan")
    print(f"tables: {before.counts[0]:,} bytes before, {after.counts[-1]:,} after")
    print(f"largest difference to the model: {difference:.2g}")


if __name__ == "__main__":
    main()
