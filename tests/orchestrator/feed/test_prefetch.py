"""A prefetched iterator yields the same items, hands over its error, and ends with its consumer."""

import threading

import pytest

from orchestrator.feed.prefetch import prefetched


def test_items_come_in_order():
    assert list(prefetched(lambda: (i for i in range(100)), 3)) == list(range(100))


def test_an_error_comes_after_the_items_before_it():
    def failing():
        yield 1
        yield 2
        raise OSError("disk gone")

    stream = prefetched(failing, 4)
    assert (next(stream), next(stream)) == (1, 2)
    with pytest.raises(OSError, match="disk gone"):
        next(stream)


def test_it_runs_ahead_but_no_further_than_its_depth():
    made, third = [], threading.Event()

    def counting():
        for i in range(10):
            made.append(i)
            if i == 3:
                third.set()
            yield i

    stream = prefetched(counting, 3)
    assert next(stream) == 0
    assert third.wait(10)
    assert made == [0, 1, 2, 3]
    stream.close()


def test_items_are_made_in_one_other_thread():
    names = set(prefetched(lambda: (threading.current_thread().name for _ in range(20)), 4))
    assert names == {"prefetch_0"}


def test_closing_closes_the_iterator():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    stream = prefetched(endless, 2)
    next(stream)
    stream.close()
    assert closed == [True]
