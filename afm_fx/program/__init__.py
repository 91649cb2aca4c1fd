"""Programs: a model captured as a graph, what it takes and gives, and how it came about.

Read ``program`` with ``inputs``, ``batch``, ``recipe`` and ``change``, then ``capture`` and its way back
``exported_program``; ``typed_inputs`` with ``input_kind`` and ``input_mapping``; ``watched_run``, ``diagnosis``,
``logits``, ``random_inputs``; ``user_model`` (models by name), ``torchrec`` with ``plain_collections``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
