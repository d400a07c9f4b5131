"""Keeps who decided what of captions and when, and which changes can be undone.

Each label has its decisions in :data:`DECISIONS`, newest last, with the values before
and after. Changes that can be undone, of one caption or many, are remembered in an
execution store of the dataset, which goes when the dataset goes.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fiftyone as fo
from fiftyone.operators.store import ExecutionStore

from fiftyone_regioncap.dataset.store import Document, now

DECISIONS = "review_history"
"""Attribute of captions with all decisions."""

STORE = "regioncap_reviews"
"""Name of the execution store."""

SECONDS_KEPT = 30 * 24 * 3600
"""Time for which a change can be undone."""


@dataclass(frozen=True)
class Remembered:
    """A change that can be undone.

    Attributes:
        change: Id of the change.
        by: Who made it.
        field: Field of the captions.
        tracks_field: Field of tracks that have the captions too; None for none.
        sample_ids: Ids of the samples.
        count: Number of captions that it changed.
    """

    change: str
    by: str
    field: str
    tracks_field: str | None
    sample_ids: tuple[str, ...]
    count: int


def reviewer() -> str:
    """Returns the user that this process runs as."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # of a number without a name, as in containers
        return "unknown"


def following(
    decisions: Sequence[Document],
    change: str,
    by: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    undoes: str | None,
) -> Document:
    """Returns what a label keeps of its decisions after a change.

    A decision that is undone is taken away.

    Args:
        decisions: The decisions before.
        change: Id of the change.
        by: Who decides.
        before: Values that the change replaces.
        after: Values that it puts in their place.
        undoes: Id of the change that it undoes; None for none.
    """
    kept = list(decisions)
    if kept and undoes is not None and kept[-1].get("change") == undoes:
        kept.pop()
    else:
        made = {"change": change, "by": by, "at": now()}
        kept.append({**made, "before": dict(before), "after": dict(after)})
    last = kept[-1] if kept else {}
    return {
        DECISIONS: kept or None,
        "reviewed_by": last.get("by"),
        "reviewed_at": last.get("at"),
    }


def undone(
    decisions: Sequence[Document], change: str, state: Any
) -> dict[str, Any] | None:
    """Returns the values that undo a change of a caption.

    Args:
        decisions: The caption's decisions.
        change: Id of the change.
        state: The caption's state.

    Returns:
        None where something else came after it.
    """
    last = decisions[-1] if decisions else {}
    if last.get("change") != change:
        return None
    same = all(getattr(state, key) == value for key, value in last["after"].items())
    return dict(last["before"]) if same else None


def remember(
    dataset: fo.Dataset,
    change: str,
    by: str,
    field: str,
    tracks_field: str | None,
    sample_ids: Sequence[str],
    count: int,
) -> None:
    """Remembers a change, or a part of one, so that it can be undone."""
    key = f"{time.time_ns():020d}:{change}"
    record = Remembered(change, by, field, tracks_field, tuple(sample_ids), count)
    value = {**asdict(record), "sample_ids": list(sample_ids)}
    _store(dataset).set(key, value, ttl=SECONDS_KEPT)


def last(
    dataset: fo.Dataset, field: str | None = None, by: str | None = None
) -> Remembered | None:
    """Returns the last change, all its parts together; None where there is none.

    Args:
        dataset: The dataset.
        field: Field of the captions; None for any.
        by: Whose change; None for anybody's.
    """
    store = _store(dataset)
    parts: list[Remembered] = []
    for key in sorted(store.list_keys(), reverse=True):
        if parts and not key.endswith(f":{parts[0].change}"):
            continue
        values = store.get(key)
        if values is None:
            continue
        part = Remembered(**{**values, "sample_ids": tuple(values["sample_ids"])})
        if field in (None, part.field) and by in (None, part.by):
            parts.append(part)
    if not parts:
        return None
    first = parts[0]
    ids = dict.fromkeys(i for part in parts for i in part.sample_ids)
    count = sum(part.count for part in parts)
    return Remembered(
        first.change, first.by, first.field, first.tracks_field, tuple(ids), count
    )


def forget(dataset: fo.Dataset, change: str) -> None:
    """Forgets a change, which was undone."""
    store = _store(dataset)
    for key in store.list_keys():
        if key.endswith(f":{change}"):
            store.delete(key)


def _store(dataset: fo.Dataset) -> ExecutionStore:
    return ExecutionStore.create(STORE, dataset._doc.id)
