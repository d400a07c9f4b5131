"""Runs a job from an operator and shows how far it is, in the App and delegated."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from fiftyone.operators import types

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.core.progress import ProgressEvent, ProgressListener

logger = logging.getLogger(__name__)


class Outcome(Protocol):
    """Summary that a job of the library returns."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""

    def to_markdown(self) -> str:
        """Returns a few lines for people."""


Job = Callable[[ProgressListener, threading.Event], Outcome]
"""A library call that takes a listener and an event that cancels it."""

SECONDS_BETWEEN_EVENTS = 0.5


Afterwards = Callable[[Any, Any], Iterator[Any]]
"""Messages that tell the App what to show of an outcome."""


def run(ctx: Any, job: Job, afterwards: Afterwards | None = None) -> Any:
    """Runs a job.

    Args:
        ctx: The execution context.
        job: The library call.
        afterwards: Messages that tell the App what to show once the job is done.

    Returns:
        For delegated runs the summary as a dict; else a generator of App messages that
        shows progress, reloads the dataset and shows the summary, or the error.
    """
    if ctx.delegated:
        return results(job(_throttled(ctx), threading.Event()))
    return _stream(ctx, job, afterwards)


def run_at_once(ctx: Any, job: Job, afterwards: Afterwards | None = None) -> Any:
    """Runs a job that reports no progress.

    Args:
        ctx: The execution context.
        job: The library call.
        afterwards: Messages that tell the App what to show once the job is done.

    Returns:
        The summary as a dict, or the error in words.
    """
    try:
        outcome = job(lambda event: None, threading.Event())
    except RegionCapError as error:
        if ctx.delegated:
            raise
        ctx.ops.notify(str(error), variant="error")
        return {"summary": f"**Failed.** {escape(str(error))}"}
    if not ctx.delegated:
        for _ in (afterwards or _reload)(ctx, outcome):
            pass  # the App is told once the operator returns
    return results(outcome)


def _throttled(ctx: Any) -> ProgressListener:
    last = 0.0

    def tell(event: ProgressEvent) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_EVENTS:
            last = time.monotonic()
            ctx.set_progress(progress=event.fraction, label=_label(event))

    return tell


def _label(event: ProgressEvent) -> str:
    if event.text:
        return event.text
    if event.eta is None:
        return event.message
    minutes, seconds = divmod(round(event.eta), 60)
    return f"{event.message}, {minutes}:{seconds:02d} left"


def _stream(ctx: Any, job: Job, afterwards: Afterwards | None) -> Iterator[Any]:
    events: queue.SimpleQueue[ProgressEvent | None] = queue.SimpleQueue()
    cancel = threading.Event()
    outcome: list[Outcome] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(job(events.put, cancel))
        except BaseException as error:
            errors.append(error)
        finally:
            events.put(None)

    thread = threading.Thread(target=work, name="regioncap-job")
    thread.start()
    try:
        while (event := _latest(events)) is not None:
            yield ctx.ops.set_progress(label=_label(event), progress=event.fraction)
    finally:
        # Reached early when the App closes the connection: the job stops at its next
        # step, and what it wrote stays.
        cancel.set()
        thread.join()
    if errors:
        yield from _shown_error(ctx, errors[0])
        return
    yield from (afterwards or _reload)(ctx, outcome[0])
    yield ctx.ops.show_output(
        outputs=types.Property(outputs()).to_json(), results=results(outcome[0])
    )


def _reload(ctx: Any, outcome: Any) -> Iterator[Any]:
    """Shows what was written."""
    yield ctx.ops.reload_dataset()


def _shown_error(ctx: Any, error: BaseException) -> Iterator[Any]:
    """Shows an error in words; FiftyOne says nothing of one raised in a generator."""
    if not isinstance(error, RegionCapError):
        logger.error("an operator failed", exc_info=error)
    text = str(error) or type(error).__name__
    yield ctx.ops.notify(text, variant="error")
    yield ctx.ops.show_output(
        outputs=types.Property(outputs()).to_json(),
        results={"summary": f"**Failed.** {escape(text)}"},
    )


def _latest(events: queue.SimpleQueue[ProgressEvent | None]) -> ProgressEvent | None:
    """Returns the newest event after a short rest; None once the job has ended."""
    event = events.get()
    deadline = time.monotonic() + SECONDS_BETWEEN_EVENTS
    while event is not None:
        try:
            event = events.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            break
    return event


def outputs() -> types.Object:
    """Returns the output that the App shows of a summary."""
    shown = types.Object()
    shown.str("summary", label="Summary", view=types.MarkdownView())
    return shown


def results(summary: Outcome) -> dict[str, Any]:
    """Returns the summary as plain values for the App and for delegated results."""
    return {**summary.to_dict(), "summary": summary.to_markdown()}
