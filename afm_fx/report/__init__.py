"""What a person reads: the explanation of a model, the report of a compression, their tables and pages.

Read ``chains`` and ``explanation``, ``compression_report``; for pages ``flow``, ``picture``, ``picture_svg``,
``plots``, ``page_templates``, ``page``, ``extras``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
