"""afm_fx: a compiler pass that makes trained click-through-rate models low-rank, proves the rewrite, and exports it.

What most users need is here. Rooms hold the rest, from the ground up: ``io``, ``program``, ``data``, ``calibration``,
``runtime``, ``measure``, ``planning``, ``recovery``, ``large_tables``, ``report`` and ``commands``. A name is imported
when it is first asked for, so that the command line answers before torch is there.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
