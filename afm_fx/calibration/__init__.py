"""Calibration: what the features of every site look like on real rows, as sums that add.

Read ``calibration`` (the verb) and ``statistics`` (what it gives), then what is summed: ``taps`` (where features are
read), ``moments``, ``sensitivity``, ``traffic``; ``statistics_collector`` (one process), ``all_reduce`` (many).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
