"""Measurements: contenders on the same rows in one interleaved run, for latency, load and quality.

Read ``contenders``, ``benchmark`` with ``measurement`` and ``latencies``; ``serving_load`` with ``loadgen``;
``evaluation`` with ``worsening`` and ``quality_comparison``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
