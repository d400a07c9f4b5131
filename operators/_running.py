"""Runs a job from an operator and shows how far it is, in the App and delegated."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from uuid import uuid4

import fiftyone.operators as foo
from fiftyone.operators import types

from fiftyone_regioncap.core.errors import Canceled, RegionCapError
from fiftyone_regioncap.core.markdown import escape, plain
from fiftyone_regioncap.core.progress import ProgressEvent, ProgressListener
from fiftyone_regioncap.dataset.store import undisturbed

from ._layout import WRAP

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

_DEFAULT_GROUPS = {
    *("tags", "metadata", "labels", "frame labels", "primitives", "other")
}
"""Groups of the sidebar that the App makes itself."""

Afterwards = Callable[[Any, Any], Iterator[Any]]
"""Messages that tell the App what to show of an outcome."""


def run(
    ctx: Any,
    job: Job,
    afterwards: Afterwards | None = None,
    following: Callable[[Any], Sequence[types.Button]] = lambda _: (),
    quiet: bool = False,
) -> Any:
    """Runs a job.

    Args:
        ctx: The execution context.
        job: The library call.
        afterwards: Messages that tell the App what to show once the job is done.
        following: Returns buttons for what people do next, given the outcome.
        quiet: Whether what is shown afterwards says all, so that no summary is.

    Returns:
        For delegated runs the summary as a dict; else a generator of App messages that
        shows progress, reloads the dataset and shows the summary, or the error.

    Raises:
        RegionCapError: When a delegated run fails, also where every sample did.
    """
    work = _Work(job)
    if not ctx.delegated:
        return _stream(ctx, work, afterwards, following, quiet)
    for event in work:
        if event is not None:
            ctx.set_progress(progress=event.fraction, label=describe(event))
    if work.error is not None:
        raise work.error
    if getattr(work.outcome, "nothing_done", False):
        # FiftyOne takes for completed whatever raises no error.
        raise RegionCapError(plain(work.outcome.to_markdown()))
    ctx.set_progress(progress=1.0, label="Done")
    return results(work.outcome)


class _Work:
    """A job in a thread of its own.

    Iterating over it starts the job, and gives its newest event, or None when there is
    no news, every half second until it ends; then ``outcome`` or ``error`` is there.
    """

    outcome: Any = None
    error: BaseException | None = None

    def __init__(self, job: Job) -> None:
        self.id = uuid4().hex
        self._job = job
        self._cancel = threading.Event()
        self._events: queue.SimpleQueue[ProgressEvent | None] = queue.SimpleQueue()
        self._ended = threading.Event()

    def __iter__(self) -> Iterator[ProgressEvent | None]:
        thread = threading.Thread(target=self._run, name="regioncap-job")
        thread.start()
        _at_work[self.id] = self
        try:
            while not self._ended.is_set():
                yield self._latest()
        finally:
            # Reached early when the App closes the connection: the job stops at its
            # next step, and what it wrote stays.
            self._cancel.set()
            thread.join()
            del _at_work[self.id]

    def cancel(self) -> None:
        """Asks the job to stop after the step at hand."""
        self._cancel.set()

    def _run(self) -> None:
        try:
            self.outcome = self._job(self._events.put, self._cancel)
        except BaseException as error:
            self.error = error
        finally:
            self._ended.set()
            self._events.put(None)

    def _latest(self) -> ProgressEvent | None:
        """Returns the newest event after a short rest; None when there is none."""
        latest = None
        deadline = time.monotonic() + SECONDS_BETWEEN_EVENTS
        while not self._ended.is_set():
            try:
                event = self._events.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                break
            latest = event or latest
        return latest


_at_work: dict[str, _Work] = {}
"""The jobs of this process, by their ids."""


class CancelJob(foo.Operator):
    """Stops a job whose progress is shown, which covers all else in the App."""

    @property
    def config(self) -> foo.OperatorConfig:
        """Configuration of the operator; it is not listed in the browser."""
        label = "Cancel a job"
        return foo.OperatorConfig(name="cancel_job", label=label, unlisted=True)

    def execute(self, ctx: Any) -> None:
        """Asks the job to stop."""
        work = _at_work.get(ctx.params["work"])
        if work is not None:
            work.cancel()
            ctx.ops.notify("The job stops after the step at hand; what it wrote stays")


def _progress(ctx: Any, work: _Work, label: str, fraction: float) -> Any:
    """Returns the message that shows progress, with a button that stops the job."""
    shown = types.Object()
    shown.float("progress", view=types.ProgressView(label=label))
    uri = f"{ctx.operator_uri.rpartition('/')[0]}/cancel_job"
    button = types.Button(label="Cancel", operator=uri, params={"work": work.id})
    shown.view("cancel", button)
    return ctx.ops.show_output(
        outputs=types.Property(shown).to_json(), results={"progress": fraction}
    )


def words(error: BaseException) -> str:
    """Returns an error as people should read it; an unexpected one is logged."""
    if isinstance(error, RegionCapError):
        return str(error)
    logger.error("an operator failed", exc_info=error)
    return (
        f"{type(error).__name__}: {error}. This was not expected; the log of the App's "
        "server has more"
    )


def describe(event: ProgressEvent) -> str:
    """Returns an event in words, with the time that is left."""
    if event.text:
        return event.text
    if event.eta is None:
        return event.message
    minutes, seconds = divmod(round(event.eta), 60)
    return f"{event.message}, {minutes}:{seconds:02d} left"


def _stream(
    ctx: Any,
    work: _Work,
    afterwards: Afterwards | None,
    following: Callable[[Any], Sequence[types.Button]],
    quiet: bool,
) -> Iterator[Any]:
    known, placed = _label_fields(ctx.dataset), _sidebar(ctx.dataset)
    colored = ctx.dataset is None or ctx.dataset.app_config.color_scheme is not None
    label, fraction, began = "Starting", 0.0, time.monotonic()
    for event in work:
        if event is not None:
            label, fraction = describe(event), event.fraction
        shown = label
        if event is None:
            shown = f"{label} ({time.monotonic() - began:.0f} s)"
        yield _progress(ctx, work, shown, fraction)
    if work.error is not None:
        yield from show_error(ctx, work.error)
        return
    try:
        yield from _show_written(ctx, known, colored)
        yield from _arrange_sidebar(ctx, placed)
        if afterwards is not None:
            yield from afterwards(ctx, work.outcome)
        if not quiet:
            shown = types.Property(outputs(following(work.outcome)))
            yield ctx.ops.show_output(
                outputs=shown.to_json(), results=results(work.outcome)
            )
    except Exception as error:  # else progress would be shown forever
        yield from show_error(ctx, error)


def _label_fields(dataset: Any) -> set[str]:
    """Returns the fields of labels that a dataset has now."""
    if dataset is None:
        return set()
    return set(dataset._get_label_fields())


def _show_written(ctx: Any, known: set[str], colored: bool) -> Iterator[Any]:
    """Lets the App show new fields and labels.

    An open sample keeps the list of fields that the App had when it was clicked, and
    Annotate the labels, so the sample is closed where new fields are drawn on it, and
    opened anew where its tracks were made anew.
    """
    if ctx.dataset is None:
        return
    undisturbed(ctx.dataset.reload)
    yield ctx.ops.reload_dataset()
    scheme = ctx.dataset.app_config.color_scheme
    if scheme is not None and not colored:  # which the App reads with a page only
        yield ctx.trigger("set_color_scheme", {"color_by": scheme.color_by})
    fresh = _label_fields(ctx.dataset) - known
    shown = ctx.dataset.app_config.active_fields
    if fresh and shown is not None and not shown.exclude:
        hidden = _label_fields(ctx.dataset) - {*shown.paths}
        active = ({*ctx.active_fields} | fresh) - hidden
        yield ctx.trigger("set_active_fields", {"fields": sorted(active)})
    if ctx.current_sample is None:
        return
    yield ctx.ops.reload_samples()
    if any(name.startswith("frames.") for name in fresh):
        yield ctx.ops.close_sample()
    if fresh:
        yield ctx.ops.notify("Open the sample again to see the new fields")


def _sidebar(dataset: Any) -> dict[str, set[str]]:
    """Returns the fields of a dataset's own groups of the sidebar, by name."""
    groups = () if dataset is None else dataset.app_config.sidebar_groups or ()
    own = (group for group in groups if group.name not in _DEFAULT_GROUPS)
    return {group.name: set(group.paths) for group in own}


def _arrange_sidebar(ctx: Any, placed: Mapping[str, set[str]]) -> Iterator[Any]:
    """Puts new fields into their groups of the sidebar, which a page reads once."""
    groups = [
        {"name": name, "paths": sorted(paths)}
        for name, paths in _sidebar(ctx.dataset).items()
        if paths - placed.get(name, set())
    ]
    if groups:
        plugin = ctx.operator_uri.rpartition("/")[0]
        yield ctx.trigger(f"{plugin}/arrange_sidebar", {"groups": groups})


def show_error(ctx: Any, error: BaseException) -> Iterator[Any]:
    """Shows an error in words; FiftyOne says nothing of one raised in a generator."""
    stopped = isinstance(error, Canceled)
    text = words(error)
    if stopped:
        yield ctx.ops.reload_dataset()
    yield ctx.ops.notify(text, variant="info" if stopped else "error")
    head = "**Canceled.**" if stopped else "**Failed.**"
    yield ctx.ops.show_output(
        outputs=types.Property(outputs()).to_json(),
        results={"summary": f"{head} {escape(text)}"},
    )


def outputs(buttons: Sequence[types.Button] = ()) -> types.Object:
    """Returns the output that the App shows of a summary.

    Args:
        buttons: Buttons under it.
    """
    shown = types.Object()
    shown.str("summary", label="Summary", view=types.MarkdownView())
    if buttons:
        row = shown.h_stack("next", gap=1, componentsProps=WRAP)
        for number, button in enumerate(buttons):
            row.view(f"next_{number}", button)
    return shown


def results(summary: Outcome) -> dict[str, Any]:
    """Returns the summary as plain values for the App and for delegated results."""
    return {**summary.to_dict(), "summary": summary.to_markdown()}
