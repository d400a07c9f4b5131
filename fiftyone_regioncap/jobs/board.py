"""Jobs that run: who they are, what is done of them, and who asked them to stop.

Jobs that would give the same results form a group, whose runs share the work: a sample
that one of them has done is passed over by the others. A job that writes the same
fields with other options is refused as long as one runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

from bson import ObjectId

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset import leases, locks
from fiftyone_regioncap.dataset.leases import Process

State = Literal["running", "done", "failed", "canceled"]

DAYS = 30
"""How long finished jobs are remembered."""

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
    """

    state: Literal["done", "failed"] | None = None
    error: str | None = None
    deaths: int = 0
    run: str | None = None


@dataclass
class Run:
    """One run of a job, on the board of the database that all processes see.

    Attributes:
        id: Id of the run.
        group: Id of the group of runs that share the work.
        dataset_id: Id of the dataset.
        fields: Fields that are written.
        signature: Hash of what the results depend on.
        canceled: Set when somebody asked the job to stop.
    """

    id: str
    group: str
    dataset_id: ObjectId
    fields: tuple[str, ...]
    signature: str
    canceled: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def begin(
        cls,
        name: str,
        dataset: str,
        dataset_id: ObjectId,
        writes: Sequence[str],
        signature: str,
        **facts: Any,
    ) -> Run:
        """Puts a job on the board.

        Args:
            name: Name of the job.
            dataset: Name of the dataset.
            dataset_id: Its id.
            writes: Fields that are written, without ``frames.``.
            signature: Hash of what the results depend on.
            **facts: What :func:`jobs` shows beside.

        Raises:
            FieldError: When a job with other options is writing one of the fields.
        """
        jobs = locks.collection("jobs")
        run = uuid4().hex[:12]
        group = run
        with locks.locked(f"jobs of {dataset_id}"):
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
                        f"stop it: regioncap jobs cancel {other['_id']}"
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

    def beat(self, now: datetime, progress: Mapping[str, Any]) -> None:
        """Says that the job lives and how far it is, and hears whether to stop.

        Args:
            now: The server's time.
            progress: What :func:`jobs` shows of it.
        """
        expires = now + timedelta(seconds=leases.SECONDS)
        change = {"expires_at": expires, "beat_at": now, **progress}
        found = locks.collection("jobs", durable=False).find_one_and_update(
            {"_id": self.id}, {"$set": change}, {"cancel": 1}
        )
        if found is not None and found["cancel"]:
            self.canceled.set()

    def end(self, state: State, progress: Mapping[str, Any]) -> None:
        """Records the end of the run; what a group knows goes with its last run."""
        jobs = locks.collection("jobs")
        now = locks.server_time()
        change = {"state": state, "ended_at": now, **progress}
        jobs.update_one({"_id": self.id}, {"$set": change})
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
        values = {"group": self.group, "sample_id": sample_id, "run": self.id}
        _outcomes().update_one(
            {"_id": f"{self.group}/{sample_id}"},
            {"$set": {**values, "state": state, "error": error}},
            upsert=True,
        )

    def died(self, owner: str) -> list[str]:
        """Records that a worker died, and releases what it was at work on.

        Args:
            owner: The worker's owner of leases.

        Returns:
            Ids of the samples.
        """
        held = locks.collection("leases")
        found = {
            lease["_id"].rpartition("/")[2] for lease in held.find({"owner": owner})
        }
        for sample_id in found:
            _outcomes().update_one(
                {"_id": f"{self.group}/{sample_id}"},
                {
                    "$inc": {"deaths": 1},
                    "$set": {"group": self.group, "sample_id": sample_id},
                },
                upsert=True,
            )
        held.delete_many({"owner": owner})
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


def jobs(limit: int = 50) -> list[dict[str, Any]]:
    """Returns the jobs on the board, the last one first.

    Args:
        limit: Greatest number of jobs.

    Returns:
        Documents with ``id``, ``name``, ``dataset``, ``state`` (``"died"`` for those
        that ended without saying so), times and progress.
    """
    now = locks.server_time()
    found = []
    for job in locks.collection("jobs").find().sort("began_at", -1).limit(limit):
        if job["state"] == "running" and is_over(job, now):
            job["state"] = "died"
        hidden = ("_id", "dataset_id", "signature", "node", "pid", "began", "cancel")
        shown = {key: value for key, value in job.items() if key not in hidden}
        found.append({"id": job["_id"], **shown})
    return found


def cancel(run: str) -> bool:
    """Asks a job to stop, wherever it runs; its workers hear it within seconds.

    Returns:
        Whether there is such a job that has not ended.
    """
    query = {"_id": run, "state": "running"}
    change = {"$set": {"cancel": True}}
    return bool(locks.collection("jobs").update_one(query, change).matched_count)
