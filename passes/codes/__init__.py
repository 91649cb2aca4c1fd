"""Features written as codes: factors, decoders, the values that flow, and the nodes that work on them.

Read ``factor`` and ``table_codes`` (what is stored), ``decoder`` and ``low_rank_value`` (what flows),
``code_builder`` (what makes nodes), ``decoder_constants`` and ``restore`` (back to features), ``products``,
``activate_codes``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
