"""Batching of requests in the thread that runs the model."""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable

from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.dam.scheduler import DamJob, Scheduler, Update

logger = logging.getLogger(__name__)


class Batcher:
    """Runs a scheduler in a thread of its own.

    Args:
        dam: Loaded DAM model; nothing else may use it meanwhile.
        rows: Number of answers generated at once.
    """

    def __init__(self, dam: DAM, rows: int) -> None:
        self._scheduler = Scheduler(dam, rows)
        self._commands: queue.SimpleQueue[Callable[[], None] | None]
        self._commands = queue.SimpleQueue()
        self._listeners: dict[object, Callable[[Update], None]] = {}
        self._keys = itertools.count()
        self._thread = threading.Thread(
            target=self._run, name="regioncap-serve", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; unfinished answers are dropped."""
        self._commands.put(None)
        self._thread.join()

    def key(self) -> int:
        """Returns a unique key for a job."""
        return next(self._keys)

    async def updates(self, job: DamJob) -> AsyncGenerator[Update, None]:
        """Yields the updates of a job; leaving early cancels it."""
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Update] = asyncio.Queue()

        def tell(update: Update) -> None:
            loop.call_soon_threadsafe(news.put_nowait, update)

        def begin() -> None:
            self._listeners[job.key] = tell
            self._scheduler.submit(job)

        def forget() -> None:
            if self._listeners.pop(job.key, None) is not None:
                self._scheduler.cancel(job.key)

        self._commands.put(begin)
        try:
            while True:
                update = await news.get()
                yield update
                if update.answers is not None or update.error is not None:
                    return
        finally:
            self._commands.put(forget)

    def _run(self) -> None:
        while True:
            try:
                command = self._commands.get(block=not self._scheduler.busy)
            except queue.Empty:
                self._step()
                continue
            if command is None:
                return
            command()

    def _step(self) -> None:
        try:
            updates = self._scheduler.step()
        except Exception as error:
            logger.exception("the model failed")
            # The scheduler has dropped what was at work; those who wait must know.
            updates = [
                Update(key, error=f"the model failed: {error}")
                for key in self._listeners
            ]
            for key in self._listeners:
                self._scheduler.cancel(key)
        for update in updates:
            last = update.answers is not None or update.error is not None
            listeners = self._listeners
            tell = (
                listeners.pop(update.key, None) if last else listeners.get(update.key)
            )
            if tell is not None:
                tell(update)
