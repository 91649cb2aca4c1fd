"""Reads ahead in a thread of its own, so that reading and computing overlap."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

AHEAD = 2
"""Items that are read ahead: one to be used next, and one that is being read."""

THREAD = "afm-fx-prefetch"


def prefetched(items: Iterable[Item], ahead: int = AHEAD) -> Generator[Item, None, None]:
    """Yields the items, of which up to ``ahead`` are read while others are used.

    What reading raises is raised here, at the item that it happened at.
    """
    iterator: Iterator[Item] = iter(items)
    end: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix=THREAD) as thread:
        waiting = deque(thread.submit(next, iterator, end) for _ in range(ahead))
        try:
            while True:
                item = waiting.popleft().result()
                if item is end:
                    return
                waiting.append(thread.submit(next, iterator, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()
            close = getattr(iterator, "close", None)  # a generator closes its files in the thread that ran it
            if close is not None:
                thread.submit(close).result()
