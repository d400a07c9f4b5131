"""Exports one video; in this process or in several, which share nothing but files."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from fiftyone_regioncap.core.errors import Canceled, VideoError
from fiftyone_regioncap.dataset.metadata import correct_metadata
from fiftyone_regioncap.dataset.store import Store
from fiftyone_regioncap.dataset.targets import Sample, Targets, name_of
from fiftyone_regioncap.exporters.base import Format
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.options import ExportOptions
from fiftyone_regioncap.exporters.records import Job, VideoRecord
from fiftyone_regioncap.exporters.staging import Parts, is_target_error

logger = logging.getLogger(__name__)

_AHEAD = 4  # videos that wait for each process


@dataclass(frozen=True)
class VideoFailure:
    """A video that could not be exported or imported.

    Attributes:
        name: Name of the video's file.
        error: Message that says what is wrong and what to do.
    """

    name: str
    error: str


@dataclass(frozen=True)
class Outcome:
    """Result of the export of one video.

    Attributes:
        name: Name of the video.
        resumed: Whether an earlier run had done it.
        failure: Why it is left out; None when it isn't.
        notes: What a person should know of the video.
    """

    name: str
    resumed: bool = False
    failure: VideoFailure | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Task that exports one video after another.

    Attributes:
        format: Format that is written.
        options: Options of the export.
        parts: Folder that takes the videos' parts.
    """

    format: Format
    options: ExportOptions
    parts: Parts

    def run(self, job: Job, sample: Sample) -> Outcome:
        """Exports one video, unless that was done.

        Raises:
            OSError: When the target can't be written any more.
        """
        notes: tuple[str, ...] = ()
        with contextlib.suppress(VideoError):  # its media may be gone
            notes = tuple(correct_metadata(sample))
        facts = {
            "sample_id": job.sample_id,
            "name": job.name,
            "filepath": sample.filepath,
            "ranges": [list(span) for span in job.ranges or ()],
            "modified": str(sample.last_modified_at),
            "frames": Store.of(sample).frames_state(),
        }
        done = self.parts.notes(job.number, facts)
        if done is not None:
            return Outcome(job.name, resumed=True, notes=(*notes, *done))
        part = self.parts.part(job.number)
        try:
            video = VideoRecord.load(sample, job, self.options)
            self.format.write(video, part, Media(self.options.media))
            part.models.update(
                (record.model or "", record.revision or "")
                for records in video.captions.values()
                for record in records
            )
            part.add("manifest", {**facts, "split": job.split})
            part.close(facts)
        except Canceled:
            part.abandon()
            raise
        except Exception as error:
            part.abandon()
            if is_target_error(error):
                raise
            self.parts.drop(job.number)
            logger.warning("%s: %s", sample.filepath, error, exc_info=True)
            message = f"{type(error).__name__}: {error}"
            return Outcome(job.name, failure=VideoFailure(name_of(sample), message))
        return Outcome(job.name, notes=(*notes, *part.notes))


def in_processes(
    targets: Targets, jobs: list[Job], task: Task, workers: int
) -> Generator[Outcome, None, None]:
    """Exports videos in several processes, a few seconds after their start.

    Args:
        targets: Samples, whose dataset and view the processes open for themselves.
        jobs: The videos.
        task: Task that exports each.
        workers: Number of processes.
    """
    stages = None if targets.view is None else targets.view._serialize()
    executor = ProcessPoolExecutor(
        workers,
        # A fork would share the connections to the database.
        mp_context=get_context("spawn"),
        initializer=_open,
        initargs=(targets.dataset.name, stages, task),
    )
    waiting: deque[Future[Outcome]] = deque()
    try:
        for job in jobs:
            waiting.append(executor.submit(_run, job))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


_opened: tuple[Any, Task]  # of a process: its samples, and what is done to each


def _open(dataset: str, stages: list[dict[str, Any]] | None, task: Task) -> None:
    global _opened
    from fiftyone_regioncap.system import database

    database.ensure()
    import fiftyone as fo

    samples = fo.load_dataset(dataset)
    if stages is not None:
        samples = fo.DatasetView._build(samples, stages)
    _opened = samples, task


def _run(job: Job) -> Outcome:
    samples, task = _opened
    return task.run(job, samples[job.sample_id])
