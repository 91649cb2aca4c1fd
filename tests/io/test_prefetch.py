"""Reading ahead: the same items in the same order, no more of them than agreed, and no error lost."""

from __future__ import annotations

import threading

import pytest

from afm_fx.io.prefetch import prefetched


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("afm-fx-prefetch")]


def test_items_come_in_order_and_the_thread_ends():
    assert list(prefetched(range(100))) == list(range(100))
    assert threads() == []


def test_reading_happens_while_an_item_is_used():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    reader = prefetched(items())
    assert next(reader) == 1
    assert second.wait(10)  # nobody has asked for the second item yet
    assert list(reader) == [2]


def test_no_more_is_read_than_agreed():
    read, may_go_on = [], threading.Event()

    def items():
        for number in range(10):
            read.append(number)
            if number == 3:
                may_go_on.set()
            yield number

    reader = prefetched(items(), ahead=2)
    assert next(reader) == 0
    assert not may_go_on.wait(0.3)  # 0 is in use, 1 and 2 are read ahead
    assert next(reader) == 1
    assert may_go_on.wait(10)
    reader.close()
    assert read == [0, 1, 2, 3]


def test_an_error_comes_at_its_item_and_the_source_is_closed_where_reading_is_given_up():
    closed = []

    def items(fails):
        try:
            yield 1
            if fails:
                raise ValueError("torn")
            yield from range(1000)
        finally:
            closed.append(fails)

    reader = prefetched(items(fails=True))
    assert next(reader) == 1
    with pytest.raises(ValueError, match="torn"):
        next(reader)
    reader = prefetched(items(fails=False))
    assert next(reader) == 1
    reader.close()
    assert closed == [True, False]
    assert threads() == []
