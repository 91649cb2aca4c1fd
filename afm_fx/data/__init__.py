"""Rows: batches as users hold them, and the files that they come from.

Read ``batches``, ``held_out``, ``labels``; ``data_files`` and ``parquet_files`` (what a format is), ``file_batches``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
