"""The laws: what every operator does to low-rank features; one table for the rewrite, the analysis and the explanation.

Read ``table`` (the laws, :func:`register`), ``outcomes`` (what a rule may answer), then the rules by law: ``moves``;
``absorb``, ``sums``, ``contractions``; ``gates``, ``masks``; ``quadratic``; ``need_features``. ``common_form`` is
what rules share, ``verdicts`` what is said of every use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
