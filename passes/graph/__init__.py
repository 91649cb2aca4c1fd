"""What every pass stands on: ATen nodes and their edits, the frame of a pass, its checks, provenance, the fixpoint.

Read ``errors``, ``nodes``, ``values``, ``edits`` and ``copies`` (ATen graphs), ``graph_pass`` (what a pass is) with
``graph_checks`` and ``graph_change`` (what is held of it), ``provenance`` (where a feature comes from), ``subgraphs``,
``fixpoint``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
