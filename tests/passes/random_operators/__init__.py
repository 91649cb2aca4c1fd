"""The vocabulary of random models, and the strategy that draws recipes from it."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.passes.random_models import Recipe, Step, Table
from tests.passes.random_operators import curves, gates, interactions, moves, sums
from tests.passes.random_operators.registry import OPERATORS, THEMES

__all__ = ["NOT_IN_ONNX", "OPERATORS", "THEMES", "curves", "gates", "interactions", "moves", "recipes", "sums"]

NOT_IN_ONNX = frozenset({"unknown", "unknown_pair", "unknown_both"})
"""Operators of our own, which no exporter knows."""


def recipes(
    theme: str | None = None, *, without: frozenset[str] = frozenset(), steps: int = 12
) -> st.SearchStrategy[Recipe]:
    """Random recipes.

    Args:
        theme: the part of the vocabulary that every other step is taken from; None for no preference.
        without: operators to leave out.
        steps: the most steps after the first lookups.
    """
    names = [name for name in OPERATORS if name not in without]
    own = [name for name in THEMES[theme] if name not in without] if theme else []
    number = st.integers(0, 11)
    looks = st.builds(Step, st.just("lookup"), st.integers(0, 3), st.integers(0, 5), st.integers(0, 4))
    others = st.builds(Step, st.sampled_from(names), number, number, number)
    preferred = st.builds(Step, st.sampled_from(own or names), number, number, number)
    return st.builds(
        lambda tables, first, rest, heads: Recipe(tuple(tables), (*first, *rest), heads),
        st.lists(st.builds(Table, st.sampled_from([4, 2, 6, 3, 1]), st.booleans()), min_size=1, max_size=3),
        st.lists(looks, min_size=1, max_size=4),
        st.lists(others | preferred | preferred, min_size=2, max_size=steps),
        st.integers(0, 3),
    )
