"""One form for what models write in many: passes that leave arithmetic and nothing else, before sites are looked for.

Read ``canonicalize`` with ``fixed_selections`` and ``row_lookups``, then ``unify_linears`` (products with constants)
and its way back ``pointwise_convolutions``; ``fold_constants``, ``expose_logits`` and ``state_writes`` stand alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
