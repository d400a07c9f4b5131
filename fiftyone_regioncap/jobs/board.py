"""The board: what runs and what ran, how far it is, and who asked it to stop.

It is the one record of runs, which the shell lists, the App shows, and executors and
workers share, wherever they run.

Jobs that would give the same results form a group, whose runs share the work: a sample
that one of them has done is passed over by the others. A job that writes the same
fields with other options is refused as long as one runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

from bson import ObjectId
from pymongo.errors import PyMongoError

from fiftyone_regioncap.core.errors import Canceled, FieldError, RegionCapError
from fiftyone_regioncap.core.progress import Flag, ProgressEvent, ProgressListener
from fiftyone_regioncap.dataset import leases, locks
from fiftyone_regioncap.dataset.leases import Process

logger = logging.getLogger(__name__)

State = Literal["running", "done", "failed", "canceled"]

DAYS = 30
"""How long finished jobs are remembered."""

SECONDS_BETWEEN_BEATS = 1.0
"""Time between looks at whether somebody asked a run to stop."""

ERRORS_KEPT = 20
"""Number of errors of samples that are kept of a run."""

DEATHS_ALONE = 2
"""Deaths of workers on a sample after which it is tried with no other beside it."""

DEATHS_FAILED = 3
"""Deaths of workers on a sample after which it has failed."""


@dataclass(frozen=True)
class Outcome:
    """What a group of jobs knows of a sample.

    Attributes:
        state: ``"done"`` or ``"failed"``; None as long as it is neither.
        error: Reason of a failure.
        deaths: Number of workers that died on it.
        run: Id of the run that has done it or failed on it.
        passed: Stage that it has passed, where other workers do the next ones.
    """

    state: Literal["done", "failed"] | None = None
    error: str | None = None
    deaths: int = 0
    run: str | None = None
    passed: str | None = None


class CancelFlags:
    """Flags of which any one stops a job."""

    def __init__(self, *flags: Flag | None) -> None:
        self._flags = [flag for flag in flags if flag is not None]

    def is_set(self) -> bool:
        """Returns whether any flag is set."""
        return any(flag.is_set() for flag in self._flags)


@dataclass
class Run:
    """One run of an operation, on the board that all processes see.

    Attributes:
        id: Id of the run.
        group: Id of the group of runs that share the work.
        dataset_id: Id of the dataset.
        fields: Fields that are written.
        signature: Hash of what the results depend on.
        canceled: Set when somebody asked the job to stop.
        shown: What :func:`jobs` shows beside, from the next beat on.
        outcome: Summary of what was done, once it is.
    """

    id: str
    group: str
    dataset_id: ObjectId | None
    fields: tuple[str, ...]
    signature: str
    canceled: threading.Event = field(default_factory=threading.Event)
    shown: dict[str, Any] = field(default_factory=dict)
    outcome: Any = None

    @classmethod
    def begin(
        cls,
        name: str,
        dataset: str | None,
        dataset_id: ObjectId | None,
        writes: Sequence[str] = (),
        signature: str = "",
        **facts: Any,
    ) -> Run:
        """Puts a run on the board.

        Args:
            name: Name of the operation.
            dataset: Name of the dataset; None for none.
            dataset_id: Its id.
            writes: Fields that are claimed, without ``frames.``; none where nothing is
                shared with other runs.
            signature: Hash of what the results depend on.
            **facts: What :func:`jobs` shows beside.

        Raises:
            FieldError: When a job with other options is writing one of the fields.
        """
        jobs = locks.collection("jobs", durable=bool(writes))
        if writes:
            _outcomes().create_index([("group", 1), ("state", 1), ("passed", 1)])
        run = uuid4().hex[:12]
        group = run
        lock = locks.locked(f"jobs of {dataset_id}") if writes else nullcontext()
        with lock:
            now = locks.server_time()
            jobs.delete_many({"began_at": {"$lt": now - timedelta(days=DAYS)}})
            others = {"dataset_id": dataset_id, "state": "running"}
            for other in jobs.find({**others, "fields": {"$in": list(writes)}}):
                if is_over(other, now):
                    continue
                if other["signature"] != signature:
                    shared = ", ".join(set(writes) & set(other["fields"]))
                    raise FieldError(
                        f"the job {other['_id']} ({other['name']}) is writing {shared} "
                        "with other options; wait for it, write to another field, or "
                        "cancel it, in the panel Caption jobs or by `regioncap jobs "
                        f"cancel {other['_id']}`"
                    )
                group = other["group"]
            jobs.insert_one(
                {
                    "_id": run,
                    "name": name,
                    "dataset": dataset,
                    "dataset_id": dataset_id,
                    "fields": list(writes),
                    "signature": signature,
                    "group": group,
                    "state": "running",
                    "cancel": False,
                    "began_at": now,
                    "expires_at": now + timedelta(seconds=leases.SECONDS),
                    **asdict(Process.this()),
                    **facts,
                }
            )
        return cls(run, group, dataset_id, tuple(writes), signature)

    @contextmanager
    def watched(
        self, listener: ProgressListener | None, cancel: Flag | None
    ) -> Iterator[tuple[ProgressListener, Flag]]:
        """Keeps the board up to date while the body works, and records how it ended.

        Args:
            listener: Called with progress events; None for nobody.
            cancel: What stops the run, beside the board; None for nothing.

        Yields:
            What the body shall call with progress events, and what stops it.
        """

        def hear(event: ProgressEvent) -> None:
            self.shown |= {"fraction": event.fraction, "message": event.message}
            if listener is not None:
                listener(event)

        over = threading.Event()

        def beat() -> None:
            while not over.wait(SECONDS_BETWEEN_BEATS):
                try:
                    self.beat(locks.server_time(), {})
                except PyMongoError as error:  # it is away, and comes back
                    logger.info("run %s not renewed: %s", self.id, error)

        thread = threading.Thread(target=beat, name="board", daemon=True)
        thread.start()
        state: State = "failed"
        try:
            yield hear, CancelFlags(cancel, self.canceled)
            if not getattr(self.outcome, "nothing_done", False):
                state = "done"
        except Canceled:
            state = "canceled"
            raise
        except BaseException as error:
            known = isinstance(error, RegionCapError)
            self.shown["error"] = str(error) if known else repr(error)
            raise
        finally:
            over.set()
            thread.join()
            with suppress(Exception):  # the run's own error is what counts
                self.end(state)

    def beat(self, now: datetime, progress: Mapping[str, Any]) -> None:
        """Says that the job lives and how far it is, and hears whether to stop.

        Args:
            now: The server's time.
            progress: What :func:`jobs` shows of it.
        """
        expires = now + timedelta(seconds=leases.SECONDS)
        change = {"expires_at": expires, "beat_at": now, **self.shown, **progress}
        found = locks.collection("jobs", durable=False).find_one_and_update(
            {"_id": self.id}, {"$set": change}, {"cancel": 1}
        )
        if found is not None and found["cancel"]:
            self.canceled.set()

    def end(self, state: State) -> None:
        """Records the end of the run; what a group knows goes with its last run."""
        jobs = locks.collection("jobs", durable=bool(self.fields))
        now = locks.server_time()
        change = {"state": state, "ended_at": now, **self.shown}
        if self.outcome is not None:
            failures = list(getattr(self.outcome, "failures", ()))
            failed = [getattr(one, "sample_id", None) for one in failures]
            change |= {
                "fraction": 1.0,
                "summary": self.outcome.to_markdown(),
                "failed": list(dict.fromkeys(filter(None, failed))),
                "errors": [str(one.error) for one in failures[:ERRORS_KEPT]],
            }
        jobs.update_one({"_id": self.id}, {"$set": change})
        if not self.fields:
            return
        others = jobs.find({"group": self.group, "state": "running"})
        if all(is_over(other, now) for other in others):
            _outcomes().delete_many({"group": self.group})

    def outcomes(self, sample_ids: Iterable[str]) -> dict[str, Outcome]:
        """Returns what the group knows of some samples."""
        units = [f"{self.group}/{sample_id}" for sample_id in sample_ids]
        return dict(map(_outcome, _outcomes().find({"_id": {"$in": units}})))

    def failures(self) -> dict[str, Outcome]:
        """Returns the samples that this run failed on."""
        query = {"group": self.group, "run": self.id, "state": "failed"}
        return dict(map(_outcome, _outcomes().find(query)))

    def settled(self) -> int:
        """Counts the samples that are done or have failed."""
        return _outcomes().count_documents(
            {"group": self.group, "state": {"$in": ["done", "failed"]}}
        )

    def settle(self, sample_id: str, error: str | None = None) -> None:
        """Records that a sample is done, or has failed."""
        state = "done" if error is None else "failed"
        self._record(sample_id, run=self.id, state=state, error=error)

    def hand_on(self, sample_id: str, stage: str) -> None:
        """Records that a sample has passed a stage; other workers do the next ones."""
        self._record(sample_id, passed=stage)

    def handed_on(
        self, stage: str, after: str = "", number: int = 256
    ) -> dict[str, Outcome]:
        """Returns samples that have passed a stage and are not done.

        Args:
            stage: Name of the stage.
            after: Id of a sample; only greater ones are returned, in order.
            number: Greatest number of samples.
        """
        query = {
            "group": self.group,
            "state": None,
            "passed": stage,
            "sample_id": {"$gt": after},
        }
        found = _outcomes().find(query).sort("sample_id", 1).limit(number)
        return dict(map(_outcome, found))

    def reopen(self, sample_ids: Iterable[str], passed: str | None = None) -> None:
        """Takes back that samples are done.

        Args:
            sample_ids: Ids of the samples.
            passed: Stage that they are to have passed; None for none.
        """
        for sample_id in sample_ids:
            self._record(sample_id, state=None, passed=passed)

    def _record(self, sample_id: str, *, deaths: int = 0, **values: Any) -> None:
        known = {"group": self.group, "sample_id": sample_id}
        change: dict[str, Any] = {"$set": {**known, **values}}
        if deaths:
            change["$inc"] = {"deaths": deaths}
        unit = f"{self.group}/{sample_id}"
        _outcomes().update_one({"_id": unit}, change, upsert=True)

    def died(self, owner: str) -> list[str]:
        """Records that a worker died, and releases what it was at work on.

        Args:
            owner: The worker's owner of leases.

        Returns:
            Ids of the samples, also of those that others have taken over since.
        """
        held, its = locks.collection("leases"), {"owners": owner}
        found = {lease["_id"].rpartition("/")[2] for lease in held.find(its)}
        for sample_id in found:
            self._record(sample_id, deaths=1)
        held.delete_many({"owner": owner})
        held.update_many(its, {"$pull": its})
        return sorted(found)


def _outcome(found: Mapping[str, Any]) -> tuple[str, Outcome]:
    known = {
        field.name: found[field.name]
        for field in fields(Outcome)
        if field.name in found
    }
    return found["sample_id"], Outcome(**known)


def _outcomes() -> Any:
    return locks.collection("outcomes", durable=False)


def is_over(job: Mapping[str, Any], now: datetime) -> bool:
    """Returns whether a job on the board has ended or died."""
    if job["state"] != "running" or job["expires_at"] < now:
        return True
    return Process(job["node"], job["pid"], job["began"]).is_dead()


def jobs(limit: int = 50, dataset_id: ObjectId | None = None) -> list[dict[str, Any]]:
    """Returns the runs on the board, the last one first.

    Args:
        limit: Greatest number of runs.
        dataset_id: Dataset whose runs are wanted; None for all.

    Returns:
        Documents with ``id``, ``name``, ``dataset``, ``state`` (``"died"`` for those
        that ended without saying so), times, ``fraction``, ``message``, and in the end
        ``summary`` (Markdown), ``failed`` (ids of samples), ``errors`` or ``error``.
    """
    now = locks.server_time()
    query = {} if dataset_id is None else {"dataset_id": dataset_id}
    found = []
    for job in locks.collection("jobs").find(query).sort("began_at", -1).limit(limit):
        if job["state"] == "running" and is_over(job, now):
            job["state"] = "died"
        hidden = ("_id", "dataset_id", "signature", "node", "pid", "began", "cancel")
        shown = {key: value for key, value in job.items() if key not in hidden}
        found.append({"id": job["_id"], **shown})
    return found


def progress_of(job: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the progress of each worker of one of :func:`jobs`, by its name."""
    found = {
        name: one.get("progress") or {}
        for name, one in (job.get("board") or {}).items()
    }
    return {**found, "local": job["progress"]} if "progress" in job else found


def cancel(run: str) -> bool:
    """Asks a job to stop, wherever it runs; its workers hear it within seconds.

    Returns:
        Whether there is such a job that has not ended.
    """
    query = {"_id": run, "state": "running"}
    change = {"$set": {"cancel": True}}
    return bool(locks.collection("jobs").update_one(query, change).matched_count)
