"""Planning: statistics and a policy become a plan, and a plan is applied.

Read ``planning`` (the task, what a policy is) and ``plan`` (what it returns), ``basis`` with ``basis_kind``,
``site_bases`` and ``simulation`` (what a rank loses), ``cost`` with ``multiply_adds`` (what it costs), ``allocation``
(which ranks), then a policy a file: ``policies``, ``budget``, ``tolerance``, ``latency_policy``; ``constant_units``,
``apply_plan``, ``refit``, ``sweep``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
