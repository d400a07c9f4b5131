"""Items that are made ahead of their consumer, in a thread."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from fiftyone_regioncap.video.prefetch import QueueGauge, prefetch


def settled(made: list[int]) -> int:
    """How many items were made, once no more come."""
    before = -1
    while before != len(made):
        before = len(made)
        time.sleep(0.1)
    return before


def source(made: list[int], number: int = 20) -> Iterator[int]:
    for item in range(number):
        made.append(item)
        yield item


@pytest.mark.parametrize(
    ("depth", "size", "max_bytes", "waiting"),
    [
        (3, None, 0, 3),
        (10, 100, 450, 4),
        (10, 1000, 450, 1),  # one may always wait
        (2, 100, 10_000, 2),
    ],
    ids=["items", "bytes", "one too large", "both"],
)
def test_what_waits_is_bounded(depth, size, max_bytes, waiting) -> None:
    made: list[int] = []
    gauge = QueueGauge()
    weigh = None if size is None else lambda _: size
    ahead = prefetch(source(made), depth, size=weigh, max_bytes=max_bytes, gauge=gauge)
    with closing(ahead):
        assert next(ahead) == 0
        assert settled(made) == 1 + waiting + 1  # and one that is made
        assert gauge == QueueGauge(waiting, waiting * (size or 0))
        assert list(ahead) == list(range(1, 20))
    assert gauge == QueueGauge()


def test_an_error_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield from range(3)
        raise ValueError("broken")

    found = []
    with pytest.raises(ValueError, match="broken"):
        for item in prefetch(broken()):
            found.append(item)
    assert found == [0, 1, 2]


def test_a_source_that_cannot_be_iterated_is_an_error() -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), deadline(20):
        next(prefetch(Broken()))


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Fails, rather than waits forever."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_closing_it_closes_the_source() -> None:
    closed = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    ahead = prefetch(endless())
    assert next(ahead) == 1
    ahead.close()
    assert closed == [True]
