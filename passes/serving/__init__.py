"""Rewrites that make a graph cheap to serve and leave its outputs as they are.

Read ``packing`` (the list, which orders itself), ``serving_cost`` (when a rewrite pays), then a pass a file: tables
(``unpool_bags``, ``pack_tables`` with ``table_layout``, ``row_terms``, ``reduce_tables`` with ``table_format``),
Linears (``merge_linears``, ``block_linears``, ``widen_linears``, ``fold_batch_norm``, ``logit_rows``), moves and
sums (``collapse_moves`` with ``assemble``, ``flat_rows``, ``sums_as_products``), inputs (``typed_inputs``), and for
compilers ``assert_ids``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
