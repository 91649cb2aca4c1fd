"""Cuts a stream of chunks of columns into chunks of another size, holding little more than one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from afm_fx.columns import Array


def rechunked(chunks: Iterable[dict[str, Array]], size: int, skip: int = 0) -> Iterator[dict[str, Array]]:
    """Yields the rows after the first ``skip``, ``size`` at a time, fewer only in the last chunk."""
    held: list[dict[str, Array]] = []
    count = 0
    for chunk in chunks:
        rows = len(next(iter(chunk.values())))
        if skip >= rows:
            skip -= rows
            continue
        if skip:
            chunk = {name: column[skip:] for name, column in chunk.items()}  # noqa: PLW2901 - the rest of it
            rows, skip = rows - skip, 0
        held.append(chunk)
        count += rows
        if count < size:
            continue
        whole = _joined(held)
        full = count - count % size
        for start in range(0, full, size):
            yield {name: column[start : start + size] for name, column in whole.items()}
        count -= full
        held = [{name: column[full:] for name, column in whole.items()}] if count else []
    if count:
        yield _joined(held)


def _joined(chunks: list[dict[str, Array]]) -> dict[str, Array]:
    if len(chunks) == 1:
        return chunks[0]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
