"""Tables that are larger than memory, or spread over processes: planned by shape, encoded block by block.

Read ``absent_tables``, ``streamed_plan``, ``apply_files``; ``sharded_tables`` stands alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
