"""The serving rewrites in their order, each kept only where it is cheaper to serve.

The order: convolutions in their own form, then constants, because the others look for constant weights; Linears before
tables, because what they read decides the order of the fields; moves last, once it is settled what is moved. Sums that
became products may merge with the Linears that read the same features, so these are asked once more.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule

from passes.block_linears import BlockLinears
from passes.canonicalize import Canonicalize
from passes.collapse_moves import CollapseMoves
from passes.fold_batch_norm import FoldBatchNorm
from passes.fold_constants import FoldConstants
from passes.graph_tools import clone_graph_module
from passes.id_bounds import OutOfRange
from passes.logit_rows import LogitRows
from passes.merge_linears import MergeLinears, StartProducts
from passes.merge_reductions import MergeReductions
from passes.pack_tables import PackedTable, PackTables
from passes.pointwise_convolutions import PointwiseConvolutions
from passes.row_terms import RowTerms
from passes.sums_as_products import SumsAsProducts
from passes.unpool_bags import UnpoolBags
from passes.widen_linears import WidenLinears


@dataclass(frozen=True)
class Served:
    """A packed graph and what was packed.

    Attributes:
        module: the graph.
        tables: the packed tables.
    """

    module: GraphModule
    tables: tuple[PackedTable, ...]


def serve(
    module: GraphModule, *, out_of_range: OutOfRange = OutOfRange.UNCHECKED, free_sources: bool = False
) -> Served:
    """The graph as it is served; the module given is left as it is."""
    clone = clone_graph_module(module)
    tables = PackTables(out_of_range=out_of_range, free_sources=free_sources)
    for each in (
        PointwiseConvolutions(), UnpoolBags(), FoldConstants(), Canonicalize(), FoldBatchNorm(), MergeLinears(),
        BlockLinears(), RowTerms(), StartProducts(), tables, CollapseMoves(), WidenLinears(), MergeReductions(),
        SumsAsProducts(), MergeLinears(), StartProducts(), CollapseMoves(), FoldConstants(), Canonicalize(),
        LogitRows(),
    ):  # fmt: skip
        result = each(clone)
        if result is not None:
            clone = result.graph_module
    return Served(clone, tables.packed)
