"""Records what runs in the App, so that every page and process sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal
from uuid import uuid4

import fiftyone as fo
from fiftyone.operators.store import ExecutionStore

from fiftyone_regioncap.core.progress import ProgressEvent

STORE = "regioncap_jobs"
"""Name of the execution store of a dataset, which goes when the dataset goes."""

SECONDS_BETWEEN_WRITES = 1.0

SECONDS_OF_SILENCE = 60.0
"""Time without a word after which a running job's process is taken for gone."""

KEPT = 30
"""Number of jobs that stay recorded."""

_CANCEL = "cancel:"

State = Literal["running", "done", "failed", "canceled"]


@dataclass(frozen=True)
class JobRecord:
    """What is known of a job of the App.

    Attributes:
        id: Id of the job.
        label: What it does, for people.
        began: Time of its start, in seconds since the epoch.
        state: State of the job.
        updated: Time of its last word.
        fraction: Share that is done, in [0, 1].
        message: What it is doing, its summary as Markdown, or its error.
        failed: Ids of the samples that failed.
        errors: Their errors, as text.
        undo: Field of captions whose last write can be taken back; None for none.
    """

    id: str
    label: str
    began: float
    state: State = "running"
    updated: float = 0.0
    fraction: float = 0.0
    message: str = ""
    failed: tuple[str, ...] = ()
    errors: tuple[str, ...] = field(default=())
    undo: str | None = None

    @property
    def gone(self) -> bool:
        """Whether its process ended without a word."""
        silent = time.time() - self.updated > SECONDS_OF_SILENCE
        return self.state == "running" and silent


class JobLog:
    """The jobs of a dataset, newest first.

    Args:
        dataset: The dataset; None for jobs without one.
    """

    def __init__(self, dataset: fo.Dataset | None) -> None:
        dataset_id = None if dataset is None else dataset._doc.id
        self._store = ExecutionStore.create(STORE, dataset_id)

    def begin(self, label: str) -> RunningJob:
        """Records that a job begins, and forgets the oldest ones."""
        for old in list(self)[KEPT - 1 :]:
            self._store.delete(old.id)
            self._store.delete(_CANCEL + old.id)
        now = time.time()
        return RunningJob(
            self._store, JobRecord(uuid4().hex, label, began=now, updated=now)
        )

    def __iter__(self) -> Iterator[JobRecord]:
        keys = [key for key in self._store.list_keys() if not key.startswith(_CANCEL)]
        found = (self._store.get(key) for key in keys)
        records = [_record(values) for values in found if values is not None]
        return iter(sorted(records, key=lambda record: -record.began))

    def cancel(self, job_id: str) -> None:
        """Asks a job to stop after its step at hand, wherever it runs."""
        self._store.set(_CANCEL + job_id, True)

    def get(self, job_id: str) -> JobRecord | None:
        """Returns a job; None when it was forgotten."""
        values = self._store.get(job_id)
        return None if values is None else _record(values)


class RunningJob:
    """The record of a job, kept up to date by the process that runs it."""

    def __init__(self, store: ExecutionStore, record: JobRecord) -> None:
        """Writes the record."""
        self._store = store
        self.record = record
        self._write()

    def tick(self, event: ProgressEvent | None) -> bool:
        """Records how far the job is, now and then.

        Args:
            event: The newest event; None when there is no news.

        Returns:
            Whether somebody asked it to stop.
        """
        if event is not None:
            self.record = replace(
                self.record, fraction=event.fraction, message=event.message
            )
        if time.time() - self.record.updated < SECONDS_BETWEEN_WRITES:
            return False
        self.record = replace(self.record, updated=time.time())
        self._write()
        return bool(self._store.get(_CANCEL + self.record.id))

    def end(self, state: State, message: str, **facts: Any) -> None:
        """Records how the job ended."""
        self.record = replace(
            self.record, state=state, updated=time.time(), message=message, **facts
        )
        self._write()

    def _write(self) -> None:
        self._store.set(self.record.id, asdict(self.record))


def _record(values: dict[str, Any]) -> JobRecord:
    lists = {name: tuple(values[name]) for name in ("failed", "errors")}
    return JobRecord(**{**values, **lists})
