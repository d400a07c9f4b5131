"""Leases: which process may write which field of which sample.

Work is claimed in the database by whoever does it, so that any number of processes on
any number of machines share a job, and each may die at any time. A lease is a document
that names its owner and when it expires by the server's clock, which the owner puts off
as long as it lives; workers' clocks never count.

Every write under a lease carries the moment until which it holds, and the server
refuses what reaches it later. So a process that was stopped between its last look at
the lease and its write, and wakes when another one has long taken over, writes nothing.
That moment lies well before the lease expires, as one command may take a while. Labels
need no mark for it, so that they are what an undisturbed job writes, and a person who
replaces a whole field can't remove it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from bson import ObjectId
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from fiftyone_regioncap.core.errors import Fenced
from fiftyone_regioncap.dataset import locks
from fiftyone_regioncap.dataset.locks import ServerState

logger = logging.getLogger(__name__)

SECONDS = float(os.environ.get("REGIONCAP_LEASE_SECONDS", 30.0))
"""How long a lease lasts that its owner doesn't renew."""

BEATS = 10
"""How often a lease is renewed in the time that it lasts."""

_DUPLICATE = 11000
"""MongoDB's code for an id that is there already."""

MARGIN = 0.25
"""Share of a lease at its end in which nothing is written any more."""


@dataclass(frozen=True)
class Process:
    """A process, as others can tell whether it lives.

    Attributes:
        node: Machine, boot and process namespace.
        pid: Number of the process there.
        began: When it started, as numbers are used again; empty where unknown.
    """

    node: str
    pid: int
    began: str

    @classmethod
    def this(cls) -> Process:
        """Returns the process that calls."""
        return _process(os.getpid())

    def is_dead(self) -> bool:
        """Returns whether it has certainly ended; False for those of other machines."""
        return self.node == _node() and _began(self.pid) != self.began


@cache
def _process(pid: int) -> Process:
    return Process(_node(), pid, _began(pid) or "")


def _began(pid: int) -> str | None:
    """Returns when a process of this machine started; None when it has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state[0] in "ZX" else state[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    try:  # not Linux
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # somebody else's, but alive
        pass
    return ""


@cache
def _node() -> str:
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            link = path.endswith("pid")
            parts.append(os.readlink(path) if link else Path(path).read_text().strip())
        except OSError:  # not Linux: the name of the machine has to do
            continue
    return ":".join(parts)


@dataclass
class Lease:
    """The right to write a field of a sample.

    Attributes:
        unit: Id of the lease.
        owner: Id of the owner, unique among all that ever claim.
        until: Moment of the server's clock until which writes go through.
        lost: Whether somebody else may have it by now.
        refresh: Makes objects in memory show what was written under it, once the work
            on the sample is over; None when they show it already.
    """

    unit: str
    owner: str
    until: datetime
    lost: bool = False
    refresh: Callable[[], None] | None = None


_held: dict[tuple[str, str], Lease] = {}
"""Leases of this process, by sample id and field."""


def sample_of(work: str) -> str:
    """Returns the id of the sample that is worked on.

    Args:
        work: What is claimed: ``"ID"`` for a sample, ``"ID:START-STOP"`` for a range of
            its frames that is worked on beside others.
    """
    return work.partition(":")[0]


def lease_of(sample_id: ObjectId | str, name: str) -> Lease | None:
    """Returns the lease under which this process writes a field of a sample.

    Args:
        sample_id: Id of the sample.
        name: Name of the field, without ``frames.``.

    Returns:
        The lease; None where the field is written outside of jobs.

    Raises:
        Fenced: When it was lost.
    """
    lease = _held.get((str(sample_id), name))
    if lease is not None and lease.lost:
        raise Fenced(f"another process works on {name} of sample {sample_id} by now")
    return lease


@dataclass
class Leases:
    """The leases of one run of a job in this process.

    Use it as a context manager, which renews them in a thread and releases them.

    Attributes:
        dataset_id: Id of the dataset.
        fields: Fields that are written, without ``frames.``.
        job: What tells jobs apart whose results differ.
        on_beat: Called with the server's time after each renewal.
    """

    dataset_id: ObjectId
    fields: Sequence[str]
    job: str
    on_beat: Callable[[datetime], None] = lambda _: None
    owner: str = field(default_factory=lambda: uuid4().hex)
    _mine: dict[str, list[Lease]] = field(default_factory=dict)
    _changing: threading.RLock = field(default_factory=threading.RLock)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _clock: tuple[float, ServerState] | None = None

    def __enter__(self) -> Leases:
        self._try_renew()  # so that it has said a word before it can hang
        self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        assert self._thread is not None
        self._thread.join()
        for sample_id in list(self._mine):
            self.release(sample_id)

    @property
    def held(self) -> frozenset[str]:
        """Ids of the samples that this run works on."""
        return frozenset(self._mine)

    def claim(self, work: str) -> Mapping[str, Any] | None:
        """Claims all fields of a sample or of a range of it, or none.

        Args:
            work: Id of the sample, or of a range of it; see :func:`sample_of`.

        Returns:
            None when they were claimed; else the lease that another one holds.
        """
        return self.claim_each([work]).get(work)

    def claim_each(self, works: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Claims several samples, or ranges of them, each of them or nothing of it.

        Args:
            works: Their ids; see :func:`sample_of`.

        Returns:
            The lease that another one holds, of those that were not claimed.
        """
        now = self.server.time
        until = now + timedelta(seconds=SECONDS * (1 - MARGIN))
        wanted = {
            work: {
                name: Lease(f"{self.dataset_id}/{name}/{work}", self.owner, until)
                for name in sorted(self.fields)
            }
            for work in works
        }
        taken = [lease for own in wanted.values() for lease in own.values()]
        others = self._take_all(taken, now)
        held: dict[str, Mapping[str, Any]] = {}
        for work, own in wanted.items():
            there = [others[one.unit] for one in own.values() if one.unit in others]
            if there:
                held[work] = there[0]
                self._give_back(own.values())
                continue
            with self._changing:
                self._mine[work] = list(own.values())
                for name, lease in own.items():
                    _held[sample_of(work), name] = lease
        return held

    @property
    def server(self) -> ServerState:
        """State of the database's server, at most a second old.

        An older time lets leases be claimed later and end earlier, never the reverse.
        """
        here = time.monotonic()
        if self._clock is None or here - self._clock[0] > 1:
            self._clock = here, ServerState.now()
        return self._clock[1]

    def taken(self, works: Iterable[str]) -> set[str]:
        """Returns what of some samples, or ranges of them, others work on now."""
        units = {
            f"{self.dataset_id}/{name}/{work}": work
            for work in works
            for name in self.fields
        }
        query = {
            "_id": {"$in": list(units)},
            "owner": {"$ne": self.owner},
            "expires_at": {"$gte": locks.server_time()},
        }
        return {
            units[there["_id"]]
            for there in locks.collection("leases").find(query)
            if not Process(there["node"], there["pid"], there["began"]).is_dead()
        }

    def any_free(self, works: Sequence[str]) -> bool:
        """Returns whether any of some samples can be claimed now."""
        return self.taken(works) != set(works)

    def release(self, work: str) -> None:
        """Gives a sample back; whoever comes next may claim it at once."""
        with self._changing:
            leases = self._mine.pop(work, [])
            for name in self.fields:
                if _held.get((sample_of(work), name)) in leases:
                    del _held[sample_of(work), name]
        try:
            for refresh in [one.refresh for one in leases if one.refresh][:1]:
                refresh()
            self._give_back(leases)
        except PyMongoError as error:  # they expire
            logger.warning("leases of sample %s not given back: %s", work, error)

    def _take_all(
        self, wanted: Sequence[Lease], now: datetime
    ) -> dict[str, Mapping[str, Any]]:
        """Takes leases; returns those that others hold, by unit."""
        leases = locks.collection("leases", durable=False)
        free: dict[str, Any] = {"expires_at": {"$lt": now}}
        queries = {lease.unit: {"_id": lease.unit, **free} for lease in wanted}
        others: dict[str, Mapping[str, Any]] = {}
        values = {
            "job": self.job,
            "owner": self.owner,
            **asdict(Process.this()),
            "claimed_at": now,
            "expires_at": now + timedelta(seconds=SECONDS),
        }
        # Those that it was taken over from may be found dead later.
        change = {"$set": values, "$addToSet": {"owners": self.owner}}
        while queries:
            asked = list(queries.values())
            changes = [UpdateOne(q, change, upsert=True) for q in asked]
            try:
                leases.bulk_write(changes, ordered=False)
                break
            except BulkWriteError as error:
                failed = error.details["writeErrors"]
                if any(item["code"] != _DUPLICATE for item in failed):
                    raise
                asked = [asked[item["index"]] for item in failed]
            queries = {query["_id"]: query for query in asked}
            for there in leases.find({"_id": {"$in": list(queries)}}):
                process = Process(there["node"], there["pid"], there["began"])
                # It is ours where an answer was lost, as the database went away.
                if there["owner"] != self.owner and not process.is_dead():
                    others[there["_id"]] = there
                    del queries[there["_id"]]
                    continue
                query = queries[there["_id"]]  # others were given back just now
                query.pop("expires_at", None)
                query["owner"] = there["owner"]
        return others

    def _give_back(self, leases: Iterable[Lease]) -> None:
        units = [lease.unit for lease in leases]
        if units:
            query = {"_id": {"$in": units}, "owner": self.owner}
            locks.collection("leases", durable=False).delete_many(query)

    def _beat(self) -> None:
        while not self._stopped.wait(min(SECONDS / BEATS, 2.0)):
            self._try_renew()

    def _try_renew(self) -> None:
        try:
            self._renew()
        except Exception as error:  # the server's clock decides what holds
            logger.info("leases not renewed: %s", error)

    def _renew(self) -> None:
        now = locks.server_time()
        with self._changing:
            mine = [lease for leases in self._mine.values() for lease in leases]
        if mine:
            leases = locks.collection("leases", durable=False)
            units = {"_id": {"$in": [lease.unit for lease in mine]}}
            query = {**units, "owner": self.owner}
            expires = now + timedelta(seconds=SECONDS)
            leases.update_many(query, {"$set": {"expires_at": expires}})
            kept = {found["_id"] for found in leases.find(query, {"_id": 1})}
            for lease in mine:
                if lease.unit in kept:
                    lease.until = now + timedelta(seconds=SECONDS * (1 - MARGIN))
                else:
                    lease.lost = True
        self.on_beat(now)
