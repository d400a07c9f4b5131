"""Locks in FiftyOne's database, which expire by the server's clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

import fiftyone.core.odm as foo
import pymongo
from bson import ObjectId
from pymongo import WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, PyMongoError

from fiftyone_regioncap.core.errors import DatabaseError
from fiftyone_regioncap.system import database

SECONDS = 60.0
"""How long a lock holds whose owner died; what it guards takes milliseconds."""

_PAUSE = 0.02


def collection(name: str, *, durable: bool = True) -> Collection:
    """Returns a collection of this package.

    Args:
        name: Its name, after ``regioncap.``.
        durable: Whether its writes wait until they outlast a power loss.
    """
    concern = WriteConcern("majority", j=True) if durable else None
    return foo.get_db_conn().get_collection(f"regioncap.{name}", write_concern=concern)


def database_id() -> str:
    """Returns what tells FiftyOne's database from others, whatever its address."""
    known = foo.get_db_conn()
    if known not in _identities:
        _identities[known] = _identity()
    return _identities[known]


_identities: dict[Database, str] = {}
"""Identities of the databases that this process has asked, which never change."""


def _identity() -> str:
    identity = {"_id": "identity"}
    found = collection("database").find_one(identity)
    if found is None:
        found = collection("database").find_one_and_update(
            identity,
            {"$setOnInsert": {"value": uuid4().hex}},
            upsert=True,
            return_document=pymongo.ReturnDocument.AFTER,
        )
    return found["value"]


@dataclass(frozen=True)
class ServerState:
    """The database's server at one moment.

    Attributes:
        time: Its time; by the time it arrives, the server is past it.
        process: What tells this run of the server from others: one that crashed and
            was started again may have lost what it was written last.
    """

    time: datetime
    process: ObjectId | None

    @classmethod
    def now(cls) -> ServerState:
        """Asks the server."""
        said = foo.get_db_conn().command("hello")
        return cls(said["localTime"], said.get("topologyVersion", {}).get("processId"))


def server_time() -> datetime:
    """Returns the server's time; by the time it arrives, the server is past it."""
    return ServerState.now().time


def sync() -> None:
    """Waits until all that this process wrote outlasts a crash of the server."""
    collection("database").update_one(
        {"_id": "journal"}, {"$currentDate": {"written_at": True}}, upsert=True
    )


def database_answers(seconds: float = 2.0) -> bool:
    """Returns whether the database answers in time, and waits for that long if not.

    A private server that was ended is started again.
    """
    began = time.monotonic()
    try:
        with pymongo.timeout(seconds):
            foo.get_db_conn().command("ping")
        return True
    except PyMongoError:
        time.sleep(max(began + seconds - time.monotonic(), 0))
    with suppress(DatabaseError):
        if database.which() == database.Server("private", None):
            database.start()
    return False


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds a lock that all processes on the database respect.

    Args:
        name: Name of what is locked.

    Raises:
        DatabaseError: When somebody holds the lock for longer than it can last.
    """
    locks, owner = collection("locks"), uuid4().hex
    until = time.monotonic() + 2 * SECONDS
    while not _take(locks, name, owner):
        if time.monotonic() > until:
            raise DatabaseError(f"another process does not release its lock on {name}")
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        locks.delete_one({"_id": name, "owner": owner})


def _take(locks: Collection, name: str, owner: str) -> bool:
    now = server_time()
    query = {"_id": name, "expires_at": {"$lt": now}}
    change = {"owner": owner, "expires_at": now + timedelta(seconds=SECONDS)}
    try:
        locks.update_one(query, {"$set": change}, upsert=True)
    except DuplicateKeyError:  # somebody holds it
        return False
    return True
