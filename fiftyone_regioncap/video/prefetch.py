"""Runs an iterator ahead of its consumer, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 4) -> Generator[T, None, None]:
    """Runs an iterator in a thread of its own, some items ahead of its consumer.

    PyAV, decord and OpenCV release the GIL while they work, so that decoding overlaps
    with what is done to the frames. Closing the returned generator, or leaving its
    loop, stops the thread and closes the source.

    Args:
        items: The iterator, for example ``reader.read(range(first, last + 1))``; the
            thread is its only user.
        depth: The number of items that may wait, which bounds the memory.

    Yields:
        The items in order. An exception of the source is raised where it came up.
    """
    waiting: queue.Queue[tuple[bool, T | None, BaseException | None]]
    waiting = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, T | None, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put((True, item, None)):
                    return
            put((False, None, None))
        except BaseException as error:  # handed on to the consumer
            put((False, None, error))
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, item, error = waiting.get()
            if error is not None:
                raise error
            if not more:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
