"""Reads ahead in a thread of its own, so that reading and computing overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

AHEAD = 2
"""Items that are read ahead: one to be used next, and one that is being read."""

_SECONDS = 0.1
"""How often the thread looks whether anybody still wants what it read."""


@dataclass(frozen=True)
class _End(Generic[Item]):
    """The end of the items, and what ended them before their time."""

    error: BaseException | None = None


def prefetched(items: Iterable[Item], ahead: int = AHEAD) -> Iterator[Item]:
    """Yields the items, of which up to ``ahead`` are read while others are used.

    What reading raises is raised here, at the item that it happened at. Where nobody asks for more items, the thread
    ends by itself.
    """
    waiting: queue.Queue[Item | _End[Item]] = queue.Queue(maxsize=max(ahead - 1, 1))  # the thread holds one more
    stopped = threading.Event()
    thread = threading.Thread(target=_read, args=(items, waiting, stopped), name="afm-fx-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def _read(items: Iterable[Item], waiting: queue.Queue[Item | _End[Item]], stopped: threading.Event) -> None:
    end: _End[Item] = _End()
    iterator = iter(items)
    try:
        for item in iterator:
            if not _put(item, waiting, stopped):
                return
    except BaseException as error:  # noqa: BLE001 - it is raised where the items are used
        end = _End(error)
    finally:
        close = getattr(iterator, "close", None)  # a generator closes its files in the thread that ran it
        if close is not None:
            close()
    _put(end, waiting, stopped)


def _put(item: Item | _End[Item], waiting: queue.Queue[Item | _End[Item]], stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            waiting.put(item, timeout=_SECONDS)
        except queue.Full:
            continue
        return True
    return False
