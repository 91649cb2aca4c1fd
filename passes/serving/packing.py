"""The passes that make a graph cheap to serve; each says itself which ones it comes after."""

from __future__ import annotations

from torch.fx import GraphModule

from passes.canonical import Canonicalize, FoldConstants, PointwiseConvolutions
from passes.graph import FailedPass, clone_graph_module, run_to_fixpoint
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
    module: GraphModule,
    *,
    out_of_range: OutOfRange = OutOfRange.UNCHECKED,
    free_sources: bool = False,
    strict: bool = True,
) -> tuple[GraphModule, tuple[PackedTable, ...], tuple[FailedPass, ...]]:
    """The graph as it is served, the tables that were packed, and the passes that failed where that is allowed.

    The module given is left as it is.
    """
    tables = PackTables(out_of_range=out_of_range, free_sources=free_sources)
    passes = (
        PointwiseConvolutions(), UnpoolBags(), FoldConstants(), Canonicalize(), FoldBatchNorm(), MergeLinears(),
        BlockLinears(), RowTerms(), tables, CollapseMoves(), FlatRows(), WidenLinears(), SumsAsProducts(),
        StartProducts(), LogitRows(),
    )  # fmt: skip
    packed, failed = run_to_fixpoint(clone_graph_module(module), passes, strict=strict)
    left = dict(packed.named_parameters()) if failed else {}
    return packed, tuple(each for each in tables.packed if not failed or each.name in left), failed
