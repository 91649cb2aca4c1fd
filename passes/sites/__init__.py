"""What can be factored: tables and Linears, how rows are looked up, by which ids, and what makes a better site.

Read ``sites``, then ``lookups``, ``id_bounds`` and ``id_precision``; ``join_tables`` and ``drop_units`` change a
graph so that its sites cost less.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
