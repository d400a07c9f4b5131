"""Locks in FiftyOne's database, which expire by the server's clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import uuid4

import fiftyone.core.odm as foo
from pymongo import WriteConcern
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from fiftyone_regioncap.core.errors import DatabaseError

SECONDS = 60.0
"""How long a lock holds whose owner died; what it guards takes milliseconds."""

_PAUSE = 0.02


def collection(name: str) -> Collection:
    """Returns a collection of this package, whose writes outlast a power loss."""
    concern = WriteConcern("majority", j=True)
    return foo.get_db_conn().get_collection(f"regioncap.{name}", write_concern=concern)


def server_time() -> datetime:
    """Returns the server's time; by the time it arrives, the server is past it."""
    return foo.get_db_conn().command("hello")["localTime"]


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
