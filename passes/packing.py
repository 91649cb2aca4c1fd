"""The passes that make a graph cheap to serve; each says itself which ones it comes after."""

from __future__ import annotations

from torch.fx import GraphModule

from passes.block_linears import BlockLinears
from passes.canonicalize import Canonicalize
from passes.collapse_moves import CollapseMoves
from passes.fixpoint import run_to_fixpoint
from passes.fold_batch_norm import FoldBatchNorm
from passes.fold_constants import FoldConstants
from passes.graph_tools import clone_graph_module
from passes.id_bounds import OutOfRange
from passes.logit_rows import LogitRows
from passes.merge_linears import MergeLinears, StartProducts
from passes.pack_tables import PackedTable, PackTables
from passes.pointwise_convolutions import PointwiseConvolutions
from passes.row_terms import RowTerms
from passes.sums_as_products import SumsAsProducts
from passes.unpool_bags import UnpoolBags
from passes.widen_linears import WidenLinears


def pack_graph(
    module: GraphModule, *, out_of_range: OutOfRange = OutOfRange.UNCHECKED, free_sources: bool = False
) -> tuple[GraphModule, tuple[PackedTable, ...]]:
    """The graph as it is served, and the tables that were packed; the module given is left as it is."""
    tables = PackTables(out_of_range=out_of_range, free_sources=free_sources)
    passes = (
        PointwiseConvolutions(), UnpoolBags(), FoldConstants(), Canonicalize(), FoldBatchNorm(), MergeLinears(),
        BlockLinears(), RowTerms(), tables, CollapseMoves(), WidenLinears(), SumsAsProducts(), StartProducts(),
        LogitRows(),
    )  # fmt: skip
    return run_to_fixpoint(clone_graph_module(module), passes), tables.packed
