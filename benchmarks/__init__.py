"""Benchmarks of ``afm_fx``: each is a script with ``--help``; committed results lie in ``results/``."""
