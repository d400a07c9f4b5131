"""Prefetching: items prepared in threads, a bounded number ahead of their consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")


class _End:
    """Marks the end of the queue, with the error that ended the stream, if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Feeder(Generic[Item, Ready]):
    """Fetches items in one thread and prepares them in several.

    The consumer can ask for what is ready without waiting, so that a GPU goes on with
    what it has while a video is decoded. To be used as a context, which ends the
    threads.

    Args:
        items: Items to prepare; may be slow or endless, and are only used by the
            fetching thread.
        prepare: Called with each item in a thread of the pool; must not raise.
        workers: Number of preparing threads.
        ahead: Number of items that may be fetched before they are taken.

    Attributes:
        ended: Whether all items have been taken.
        error: Exception that ended the stream of items; the consumer raises it again
            after the items before it.
    """

    def __init__(
        self,
        items: Iterable[Item],
        prepare: Callable[[Item], Ready],
        *,
        workers: int,
        ahead: int,
    ) -> None:
        self.ended = False
        self.error: BaseException | None = None
        self._items = items
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(workers, "regioncap-prepare")
        self._queue: queue.Queue[Future[Ready] | _End] = queue.Queue(maxsize=ahead)
        self._first: Future[Ready] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._fetch, name="regioncap-fetch", daemon=True
        )

    def __enter__(self) -> Feeder[Item, Ready]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._thread.join()

    def take(self, wait: bool) -> Ready | None:
        """Returns the next item; None when it is not ready, or when there are no more.

        Args:
            wait: Whether to wait until the next item is ready.
        """
        if self.ended:
            return None
        if self._first is None:
            try:
                got = self._queue.get(block=wait)
            except queue.Empty:
                return None
            if isinstance(got, _End):
                self.ended, self.error = True, got.error
                return None
            self._first = got
        if not wait and not self._first.done():
            return None
        result = self._first.result()
        self._first = None
        return result

    def _fetch(self) -> None:
        try:
            for item in self._items:
                if self._stopped.is_set():
                    break
                self._put(self._pool.submit(self._prepare, item))
            self._put(_End())
        except BaseException as error:  # not lost: see take()
            self._put(_End(error))

    def _put(self, entry: Future[Ready] | _End) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue
