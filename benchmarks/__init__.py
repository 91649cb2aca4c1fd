"""Benchmarks of ``afm_fx``: ``python -m benchmarks --help`` lists them; committed results lie in ``results/``.

``quality``, ``serving`` and ``cost`` hold a file for each benchmark, named like it, with what only it needs beside it;
``common`` what several need, ``datasets`` the readers of public data.
"""
