"""One stream of progress events for the shell, the SDK, the App and delegated runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from tqdm import tqdm

from fiftyone_regioncap.core.errors import Cancelled

Stage: TypeAlias = Literal["propose", "propagate", "caption", "embed", "export"]


@dataclass(frozen=True)
class Event:
    """How far a job is.

    Attributes:
        stage: what just moved.
        message: one line for people, such as ``"propagate 3/10 street.mp4: 40/289"``.
        fraction: of the whole job, in [0, 1]; never falls.
        frames: frames propagated so far.
        captions: captions made so far.
        eta: seconds left by the pace so far; None before there is any.
        text: of the caption that is being written, in a job of a single one; else None.
    """

    stage: Stage
    message: str
    fraction: float
    frames: int
    captions: int
    eta: float | None
    text: str | None = None


Listener: TypeAlias = Callable[[Event], None]
"""Called on every event, from whichever thread moved the job on."""


class Meter:
    """Turns the steps of a job into events, and stops the job when asked to.

    Args:
        stages: the stages of the job; each counts the same in ``fraction``.
        samples: how many samples pass through each stage.
        listener: who is told; None for nobody.
        cancel: set by anyone who wants the job to stop.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        samples: int,
        listener: Listener | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._samples = samples
        self._listener = listener
        self._cancel = cancel
        self._finished: dict[Stage, int] = dict.fromkeys(stages, 0)
        self._within: dict[Stage, float] = dict.fromkeys(stages, 0.0)
        self._frames = 0
        self._captions = 0
        self._fraction = 0.0
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raises :class:`Cancelled` when the job was asked to stop."""
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("cancelled; run the same job again to go on from here")

    def step(self, stage: Stage, name: str, done: int, total: int) -> None:
        """Tells that a sample moved on inside a stage.

        Args:
            stage: where it is.
            name: of the sample, for people.
            done: frames or captions of this sample that are done.
            total: frames or captions that this sample has in this stage.

        Raises:
            Cancelled: when the job was asked to stop.
        """
        self.check()
        with self._lock:
            self._within[stage] = min(done / total, 1.0) if total else 0.0
            number = min(self._finished[stage] + 1, self._samples)
            event = self._event(
                stage, f"{stage} {number}/{self._samples} {name}: {done}/{total}"
            )
        self._tell(event)

    def write(self, stage: Stage, name: str, text: str) -> None:
        """Tells the text so far of a job's only caption.

        Args:
            stage: where it is written.
            name: of the sample, for people.
            text: so far.

        Raises:
            Cancelled: when the job was asked to stop.
        """
        self.check()
        with self._lock:
            event = self._event(stage, f"{stage} {name}")
        self._tell(replace(event, text=text))

    def count(self, *, frames: int = 0, captions: int = 0) -> None:
        """Adds to the totals that events carry."""
        with self._lock:
            self._frames += frames
            self._captions += captions

    def finish(self, stage: Stage, name: str) -> None:
        """Tells that a sample is through a stage, in whichever way."""
        with self._lock:
            self._finished[stage] += 1
            self._within[stage] = 0.0
            event = self._event(
                stage, f"{stage} {self._finished[stage]}/{self._samples} {name}: done"
            )
        self._tell(event)

    def drop(self, name: str) -> None:
        """Tells that a sample failed and goes through no further stage."""
        for stage in self._finished:
            self.finish(stage, name)

    def _event(self, stage: Stage, message: str) -> Event:
        done = sum(self._finished.values()) + sum(self._within.values())
        total = len(self._finished) * self._samples
        self._fraction = max(self._fraction, min(done / total, 1.0) if total else 1.0)
        elapsed = time.monotonic() - self._began
        eta = (
            elapsed * (1 - self._fraction) / self._fraction if self._fraction else None
        )
        return Event(stage, message, self._fraction, self._frames, self._captions, eta)

    def _tell(self, event: Event) -> None:
        if self._listener is not None:
            self._listener(event)


class Bar:
    """A listener that draws a tqdm bar on stderr.

    Use as a context manager, so that the bar is closed.
    """

    def __init__(self) -> None:
        self._bar = tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar:20}| {desc}")

    def __call__(self, event: Event) -> None:
        """Moves the bar."""
        left = "" if event.eta is None else f", {tqdm.format_interval(event.eta)} left"
        self._bar.set_description_str(event.message + left, refresh=False)
        # tqdm draws only now and then; what it draws is the newest.
        self._bar.update(event.fraction - self._bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@contextmanager
def listening(progress: bool | Listener) -> Iterator[Listener | None]:
    """Who is told, as the ``progress`` of the functions for Python says.

    Args:
        progress: whether to draw a bar, or who is told instead.

    Yields:
        the listener; None for nobody.
    """
    if callable(progress):
        yield progress
    elif progress:
        with Bar() as bar:
            yield bar
    else:
        yield None
