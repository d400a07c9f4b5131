"""Progress events of jobs: one stream for the shell, the SDK, the App and executors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypeVar

from tqdm import tqdm

from fiftyone_regioncap.core.errors import Canceled

T = TypeVar("T")

Stage: TypeAlias = Literal[
    "propose",
    "propagate",
    "caption",
    "embed",
    "export",
    "read",
    "train",
    "edit",
    "move",
    "conform",
    "shots",
]


@dataclass(frozen=True)
class ProgressEvent:
    """Represents the progress of a job at one moment.

    Attributes:
        stage: The stage that advanced.
        message: One line for people, such as ``"propagate 3/10 street.mp4: 40/289"``.
        fraction: Share of the whole job that is done, in [0, 1]; never decreases.
        frames: Number of frames propagated so far.
        captions: Number of captions made so far.
        eta: Estimated seconds left; None before there is an estimate.
        text: The text so far of the caption being written, in a job with a single
            caption; else None.
    """

    stage: Stage
    message: str
    fraction: float
    frames: int
    captions: int
    eta: float | None
    text: str | None = None


ProgressListener: TypeAlias = Callable[[ProgressEvent], None]
"""Called with each event, from whichever thread advanced the job."""


class Flag(Protocol):
    """What stops a job, such as a ``threading.Event``."""

    def is_set(self) -> bool:
        """Returns whether the job is to be stopped."""


class ProgressReporter:
    """Turns the steps of a job into progress events, and stops a canceled job.

    Stages count in ``fraction`` by the time that they take: by what they are expected
    to cost at first, then by what they were seen to cost.

    Args:
        stages: The stages of the job.
        samples: Number of samples that pass through each stage.
        listener: Called with each event; None for no reporting.
        cancel: Event that any thread may set to stop the job.
        costs: Seconds that a sample is expected to take in a stage; 1 where unknown.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        samples: int,
        listener: ProgressListener | None = None,
        cancel: Flag | None = None,
        costs: Mapping[Stage, float] | None = None,
    ) -> None:
        self._costs = {stage: (costs or {}).get(stage, 1.0) for stage in stages}
        self._spent: dict[Stage, float] = dict.fromkeys(stages, 0.0)
        self._samples = samples
        self._listener = listener
        self._cancel = cancel
        self._finished: dict[Stage, int] = dict.fromkeys(stages, 0)
        self._within: dict[Stage, float] = dict.fromkeys(stages, 0.0)
        self._frames = 0
        self._captions = 0
        self._fraction = 0.0
        self._began = self._last = time.monotonic()
        self._lock = threading.Lock()

    def spent(self, stage: Stage) -> tuple[float, float]:
        """Returns the seconds spent in a stage, and the samples done meanwhile."""
        return self._spent[stage], self._finished[stage] + self._within[stage]

    def check_canceled(self) -> None:
        """Raises :class:`Canceled` if the job was canceled."""
        if self._cancel is not None and self._cancel.is_set():
            raise Canceled("canceled; run the same job again to go on from here")

    def update(self, stage: Stage, name: str, done: int, total: int) -> None:
        """Reports how far a sample is within a stage.

        Args:
            stage: The current stage.
            name: The sample's name, for people.
            done: Number of the sample's frames or captions that are done.
            total: Number of frames or captions of the sample in this stage.

        Raises:
            Canceled: If the job was canceled.
        """
        self.check_canceled()
        with self._lock:
            self._within[stage] = min(done / total, 1.0) if total else 0.0
            message = f"{self._place(stage, 1)} {name}: {done}/{total}"
            event = self._event(stage, message)
        self._emit(event)

    def update_text(self, stage: Stage, name: str, text: str) -> None:
        """Reports the text so far of a job's only caption.

        Args:
            stage: The current stage.
            name: The sample's name, for people.
            text: The text so far.

        Raises:
            Canceled: If the job was canceled.
        """
        self.check_canceled()
        with self._lock:
            event = self._event(stage, f"{stage} {name}", text)
        self._emit(event)

    def totals(self) -> dict[str, float]:
        """Returns the totals that events carry, and the share that is done."""
        with self._lock:
            event = self._event(next(iter(self._finished)), "")
        return {
            "frames_seen": event.frames,
            "captions_seen": event.captions,
            "fraction": event.fraction,
        }

    def by_stage(self) -> dict[str, dict[str, float]]:
        """Returns how many samples have left each stage, and the seconds spent in it.

        Stages may overlap; each second counts for the one that advanced then.
        """
        with self._lock:
            return {
                stage: {"samples": number, "seconds": round(self._spent[stage], 3)}
                for stage, number in self._finished.items()
            }

    def say(self, message: str) -> None:
        """Reports what the job waits for, in one line for people."""
        with self._lock:
            event = self._event(next(iter(self._finished)), message)
        self._emit(event)

    def add(self, *, frames: int = 0, captions: int = 0) -> None:
        """Adds to the totals that events carry."""
        with self._lock:
            self._frames += frames
            self._captions += captions

    def finish(self, stage: Stage, name: str) -> None:
        """Reports that a sample has left a stage, complete or not."""
        with self._lock:
            self._finished[stage] += 1
            self._within[stage] = 0.0
            message = f"{self._place(stage, 0)} {name}: done"
            event = self._event(stage, message)
        self._emit(event)

    def skip(self, name: str) -> None:
        """Reports that a sample failed and goes through no further stage."""
        for stage in self._finished:
            self.finish(stage, name)

    def _place(self, stage: Stage, ahead: int) -> str:
        if self._samples == 1:
            return stage
        number = min(self._finished[stage] + ahead, self._samples)
        return f"{stage} {number}/{self._samples}"

    def _cost(self, stage: Stage) -> float:
        """Returns the seconds that a sample takes in a stage, seen or expected."""
        seconds, samples = self.spent(stage)
        return seconds / samples if self._finished[stage] else self._costs[stage]

    def _event(
        self, stage: Stage, message: str, text: str | None = None
    ) -> ProgressEvent:
        now = time.monotonic()
        self._spent[stage] += now - self._last
        self._last = now
        costs = {one: max(self._cost(one), 1e-6) for one in self._finished}
        done = sum(cost * self.spent(one)[1] for one, cost in costs.items())
        total = sum(costs.values()) * self._samples
        self._fraction = max(self._fraction, min(done / total, 1.0) if total else 1.0)
        elapsed = time.monotonic() - self._began
        left = 1 - self._fraction
        return ProgressEvent(
            stage=stage,
            message=message,
            fraction=self._fraction,
            frames=self._frames,
            captions=self._captions,
            eta=elapsed * left / self._fraction if self._fraction else None,
            text=text,
        )

    def _emit(self, event: ProgressEvent) -> None:
        if self._listener is not None:
            self._listener(event)


def tracked(
    items: Iterable[T],
    stage: Stage,
    name: str,
    total: int,
    listener: ProgressListener | None,
    cancel: threading.Event | None,
) -> Iterator[T]:
    """Yields items, with a progress event before each and one at the end.

    Args:
        items: What is worked on, one after the other.
        stage: The work.
        name: What the items belong to, for people, such as a field.
        total: Number of items.
        listener: Called with each event; None for no reporting.
        cancel: Event that any thread may set to stop before the next item.

    Raises:
        Canceled: If ``cancel`` was set.
    """
    reporter = ProgressReporter((stage,), 1, listener, cancel)
    for number, item in enumerate(items):
        reporter.update(stage, name, number, total)
        yield item
    reporter.finish(stage, name)


class ProgressBar:
    """A progress listener that draws a tqdm bar on stderr.

    Use it as a context manager, so that the bar is closed.
    """

    def __init__(self) -> None:
        self._bar = tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar:20}| {desc}")

    def __call__(self, event: ProgressEvent) -> None:
        """Updates the bar."""
        left = "" if event.eta is None else f", {tqdm.format_interval(event.eta)} left"
        self._bar.set_description_str(event.message + left, refresh=False)
        # tqdm draws only now and then; what it draws is the newest.
        self._bar.update(event.fraction - self._bar.n)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@contextmanager
def progress_listener(
    progress: bool | ProgressListener,
) -> Iterator[ProgressListener | None]:
    """Resolves the ``progress`` argument of the functions of the SDK.

    Args:
        progress: True for a bar on stderr, False for none, or a listener.

    Yields:
        The listener; None for no reporting.
    """
    if callable(progress):
        yield progress
    elif progress:
        with ProgressBar() as bar:
            yield bar
    else:
        yield None
