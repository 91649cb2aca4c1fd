"""Recovery: trains a low-rank program on what the original says, with labels or without.

Read ``recovery``, then ``recovery_report`` (its settings too), ``recovery_data``, ``recovery_parameters``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
