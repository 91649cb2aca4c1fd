"""Generated click-through data with a known low-rank truth, for the demo, the examples and tests.

The truth is a factorization machine with a few latent factors per id, so that the interactions a model can learn from
this data live in a space of that many dimensions, however wide its embedding tables are:

    logit(x) = bias + sum_f w_f(id_f) + sum_{f<g} <u_f(id_f), u_g(id_g)> + sum_d e_d(x_d)

``u_f(id)`` are the latent factors (``rank`` numbers per id), ``w_f(id)`` is a linear map of them plus a little noise,
and ``e_d`` is a line plus a bump. Ids follow a Zipf law, dense features are log-transformed counts, as in public logs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afm_fx.errors import UserError

_TRUTH_STREAM, _ROW_STREAM, _REFERENCE_STREAM = 0, 1, 2
_REFERENCE_ROWS = 50_000
_SMALLEST_VOCABULARY = 8


@dataclass(frozen=True)
class ClickData:
    """Rows of click-through data.

    Attributes:
        ids: [rows, sparse fields] int64.
        dense: [rows, dense fields] float32.
        clicks: [rows] float32, 0 or 1.
        probabilities: [rows] float64, the true click probability that ``clicks`` was drawn from: the best score any
            model can give.
    """

    ids: NDArray[np.int64]
    dense: NDArray[np.float32]
    clicks: NDArray[np.float32]
    probabilities: NDArray[np.float64]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.clicks)


@dataclass(frozen=True)
class ClickGenerator:
    """A fixed truth from which any number of rows can be drawn; equal arguments give equal rows.

    Attributes:
        sparse_fields: number of id fields.
        dense_fields: number of numeric fields.
        largest_vocabulary: ids of the largest field; the others shrink geometrically to 8.
        rank: latent factors per id.
        zipf_exponent: the k-th most frequent id has a share proportional to ``(k + 1) ** -zipf_exponent``.
        click_rate: mean click probability.
        seed: of the truth and of every draw.
    """

    sparse_fields: int = 26
    dense_fields: int = 13
    largest_vocabulary: int = 20_000
    rank: int = 2
    zipf_exponent: float = 1.2
    click_rate: float = 0.25
    seed: int = 2024

    linear_spread: float = 0.8
    interaction_spread: float = 1.0
    dense_spread: float = 0.7
    """Standard deviations of the three parts of the logit."""

    def __post_init__(self) -> None:
        if self.sparse_fields < 1 or self.dense_fields < 0 or self.rank < 1:
            raise UserError("generated data needs at least 1 sparse field, 0 dense fields and rank 1")
        if self.largest_vocabulary < _SMALLEST_VOCABULARY:
            raise UserError(f"the largest vocabulary must hold at least {_SMALLEST_VOCABULARY} ids")
        if not 0 < self.click_rate < 1:
            raise UserError(f"the click rate is a probability strictly between 0 and 1, got {self.click_rate}")

    @property
    def vocabulary_sizes(self) -> tuple[int, ...]:
        """Number of ids of each sparse field, the largest first."""
        sizes = np.geomspace(self.largest_vocabulary, _SMALLEST_VOCABULARY, self.sparse_fields)
        return tuple(round(float(size)) for size in sizes)

    def draw(self, rows: int, part: int = 0) -> ClickData:
        """Draws rows.

        Args:
            rows: how many, at least 1.
            part: number of an independent stream of rows (say 0 to train, 1 to test).
        """
        if rows < 1:
            raise UserError(f"at least 1 row must be drawn, got {rows}")
        truth = _Truth.of(self)
        random = np.random.default_rng([self.seed, _ROW_STREAM, part])
        ids, dense = _draw_features(self, random, rows)
        probabilities = 1.0 / (1.0 + np.exp(-truth.logits(ids, dense)))
        clicks = random.random(rows) < probabilities
        return ClickData(ids, dense, clicks.astype(np.float32), probabilities)


@dataclass(frozen=True)
class _Truth:
    factors: tuple[NDArray[np.float64], ...]  # per field [ids, rank]
    weights: tuple[NDArray[np.float64], ...]  # per field [ids]
    slopes: NDArray[np.float64]  # [dense fields]
    bumps: NDArray[np.float64]  # [dense fields]
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bias: float = 0.0

    @classmethod
    def of(cls, generator: ClickGenerator) -> _Truth:
        random = np.random.default_rng([generator.seed, _TRUTH_STREAM])
        factors, weights = [], []
        for size in generator.vocabulary_sizes:
            strength = random.uniform(0.5, 1.5)
            latent = strength * random.standard_normal((size, generator.rank))
            direction = random.standard_normal(generator.rank)
            factors.append(latent)
            weights.append(latent @ direction + 0.3 * random.standard_normal(size))
        slopes = random.standard_normal(generator.dense_fields)
        bumps = random.standard_normal(generator.dense_fields)
        raw = cls(tuple(factors), tuple(weights), slopes, bumps)
        return raw._calibrated(generator)

    def logits(self, ids: NDArray[np.int64], dense: NDArray[np.float32]) -> NDArray[np.float64]:
        linear, interactions, effects = self._parts(ids, dense)
        return self.bias + self.scales[0] * linear + self.scales[1] * interactions + self.scales[2] * effects

    def _parts(self, ids: NDArray[np.int64], dense: NDArray[np.float32]) -> list[NDArray[np.float64]]:
        latent = [table[column] for table, column in zip(self.factors, ids.T, strict=True)]
        linear = np.sum([table[column] for table, column in zip(self.weights, ids.T, strict=True)], axis=0)
        total = np.sum(latent, axis=0)
        squares = np.sum([(each**2).sum(axis=1) for each in latent], axis=0)
        interactions = 0.5 * ((total**2).sum(axis=1) - squares)
        effects = dense @ self.slopes + np.exp(-((dense - 1.0) ** 2)) @ self.bumps
        return [linear, interactions, effects]

    def _calibrated(self, generator: ClickGenerator) -> _Truth:
        """Scales the parts to their spreads and sets the bias for the click rate, on reference rows."""
        random = np.random.default_rng([generator.seed, _REFERENCE_STREAM])
        parts = self._parts(*_draw_features(generator, random, _REFERENCE_ROWS))
        spreads = (generator.linear_spread, generator.interaction_spread, generator.dense_spread)
        scales = tuple(
            spread / max(float(part.std()), 1e-12) if len(part) else 0.0
            for part, spread in zip(parts, spreads, strict=True)
        )
        logits = np.sum([scale * part for part, scale in zip(parts, scales, strict=True)], axis=0)
        bias = _bias_for(logits, generator.click_rate)
        return _Truth(self.factors, self.weights, self.slopes, self.bumps, (scales[0], scales[1], scales[2]), bias)


def _draw_features(
    generator: ClickGenerator, random: np.random.Generator, rows: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    columns = []
    for size in generator.vocabulary_sizes:
        shares = np.arange(1, size + 1, dtype=np.float64) ** -generator.zipf_exponent
        edges = np.cumsum(shares / shares.sum())
        drawn = np.searchsorted(edges, random.random(rows), side="right")
        columns.append(np.minimum(drawn, size - 1))  # the last edge may round to just below 1
    counts = random.lognormal(mean=1.0, sigma=1.0, size=(rows, generator.dense_fields))
    return np.stack(columns, axis=1).astype(np.int64), np.log1p(counts).astype(np.float32)


def _bias_for(logits: NDArray[np.float64], click_rate: float) -> float:
    """The bias at which the mean probability is the click rate, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1.0 / (1.0 + np.exp(-(logits + middle)))).mean() < click_rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
