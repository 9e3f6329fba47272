"""Prefetch: run an iterator in a thread, a few items ahead of its consumer."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_END: Any = object()


def prefetched(make: Callable[[], Generator[T]], depth: int) -> Generator[T]:
    """Yield what ``make()`` yields; a thread keeps up to ``depth`` items ready.

    An error of the iterator is raised here, after the items before it. Closing this generator closes the iterator,
    once the item that is being made is done.
    """
    iterator = make()
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
            ahead: deque[Future[T]] = deque(pool.submit(next, iterator, _END) for _ in range(depth))
            try:
                while (item := ahead.popleft().result()) is not _END:
                    ahead.append(pool.submit(next, iterator, _END))
                    yield item
            finally:
                for waiting in ahead:
                    waiting.cancel()
    finally:
        iterator.close()
