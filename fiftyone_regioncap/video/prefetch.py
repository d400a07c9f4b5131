"""Runs an iterator ahead of its consumer, in a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class QueueGauge:
    """What waits in a queue at this moment.

    Attributes:
        items: Number of items.
        bytes: Their size, where it is known.
    """

    items: int = 0
    bytes: int = 0


def prefetch(
    items: Iterable[T],
    depth: int = 4,
    *,
    size: Callable[[T], int] | None = None,
    max_bytes: int = 0,
    gauge: QueueGauge | None = None,
) -> Generator[T, None, None]:
    """Runs an iterator in a thread of its own, some items ahead of its consumer.

    PyAV, decord and OpenCV release the GIL while they work, so that decoding overlaps
    with what is done to the frames. Closing the returned generator, or leaving its
    loop, stops the thread and closes the source.

    Args:
        items: The iterator, for example ``reader.read(range(first, last + 1))``; the
            thread is its only user.
        depth: The number of items that may wait, which bounds the memory.
        size: Tells the size of an item in bytes; None for no bound in bytes.
        max_bytes: Bytes that may wait; one item may always wait.
        gauge: Shows what waits.

    Yields:
        The items in order. An exception of the source is raised where it came up.
    """
    waiting: deque[tuple[T, int]] = deque()
    changed = threading.Condition()
    gauge = gauge or QueueGauge()
    failed: list[BaseException] = []
    stopped = ended = False

    def put(item: T) -> bool:
        weight = size(item) if size is not None else 0

        def has_room() -> bool:
            fits = size is None or gauge.bytes + weight <= max_bytes
            return not waiting or (len(waiting) < depth and fits)

        with changed:
            changed.wait_for(lambda: stopped or has_room())
            waiting.append((item, weight))
            gauge.items, gauge.bytes = len(waiting), gauge.bytes + weight
            changed.notify_all()
            return not stopped

    def work() -> None:
        nonlocal ended
        iterator: Iterator[T] | None = None
        try:
            iterator = iter(items)
            for item in iterator:
                if not put(item):
                    return
        except BaseException as error:  # handed on to the consumer
            failed.append(error)
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
            with changed:
                ended = True
                changed.notify_all()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                if not waiting:
                    break
                item, weight = waiting.popleft()
                gauge.items, gauge.bytes = len(waiting), gauge.bytes - weight
                changed.notify_all()
            yield item
        if failed:
            raise failed[0]
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        thread.join()
        gauge.items = gauge.bytes = 0
