"""The passes that make a graph cheap to serve; each says itself which ones it comes after."""

from __future__ import annotations

from torch.fx import GraphModule

from passes.canonical import Canonicalize, FoldConstants, PointwiseConvolutions
from passes.graph import clone_graph_module, run_to_fixpoint
from passes.serving.block_linears import BlockLinears
from passes.serving.collapse_moves import CollapseMoves
from passes.serving.flat_rows import FlatRows
from passes.serving.fold_batch_norm import FoldBatchNorm
from passes.serving.logit_rows import LogitRows
from passes.serving.merge_linears import MergeLinears, StartProducts
from passes.serving.pack_tables import PackedTable, PackTables
from passes.serving.row_terms import RowTerms
from passes.serving.sums_as_products import SumsAsProducts
from passes.serving.unpool_bags import UnpoolBags
from passes.serving.widen_linears import WidenLinears
from passes.sites import OutOfRange


def pack_graph(
    module: GraphModule, *, out_of_range: OutOfRange = OutOfRange.UNCHECKED, free_sources: bool = False
) -> tuple[GraphModule, tuple[PackedTable, ...]]:
    """The graph as it is served, and the tables that were packed; the module given is left as it is."""
    tables = PackTables(out_of_range=out_of_range, free_sources=free_sources)
    passes = (
        PointwiseConvolutions(), UnpoolBags(), FoldConstants(), Canonicalize(), FoldBatchNorm(), MergeLinears(),
        BlockLinears(), RowTerms(), tables, CollapseMoves(), FlatRows(), WidenLinears(), SumsAsProducts(),
        StartProducts(), LogitRows(),
    )  # fmt: skip
    return run_to_fixpoint(clone_graph_module(module), passes), tables.packed
