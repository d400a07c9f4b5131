"""Assigns object ids to labels, by index, else by instance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from fiftyone_regioncap.dataset.store import Document, Store

Identity: TypeAlias = tuple[int | None, str | None]
"""A label's ``index`` and the id of its ``instance``; None where it has none."""


def identity(label: Document) -> Identity:
    """Returns a label's index and instance."""
    instance = label.get("instance")
    index = label.get("index")
    return (
        None if index is None else int(index),
        None if instance is None else str(instance["_id"]),
    )


@dataclass
class ObjectIds:
    """Gives labels their object ids.

    A label's ``index`` is its object id. Without one, a label shares the id of its
    instance: the index of another label of that instance, or else the smallest id
    from 1 that no label uses.

    Attributes:
        taken: Ids in use.
        by_instance: Ids by instance id.
    """

    taken: set[int] = field(default_factory=set)
    by_instance: dict[str, int] = field(default_factory=dict)
    _next: int = 1

    @classmethod
    def scan(cls, identities: Iterable[Identity]) -> ObjectIds:
        """Registers all labels of a field, in the order of frames."""
        taken: set[int] = set()
        instances: dict[str, int | None] = {}
        for index, instance in identities:
            if index is not None:
                taken.add(index)
            if instance is not None and instances.get(instance) is None:
                instances[instance] = index
        ids = cls(taken)
        for instance, known in instances.items():
            ids.by_instance[instance] = ids.new() if known is None else known
        return ids

    def of(self, identity: Identity) -> int | None:
        """Returns a label's object id; None when it has no index and no instance."""
        index, instance = identity
        if index is not None or instance is None:
            return index
        return self.by_instance.get(instance)

    def new(self) -> int:
        """Takes the smallest id from 1 that is free."""
        while self._next in self.taken:
            self._next += 1
        self.taken.add(self._next)
        return self._next


def object_ids(store: Store, name: str) -> ObjectIds:
    """Makes the object ids of a sample; reads labels only if some have no index.

    Args:
        store: Store of the sample.
        name: Name of the frame-level Detections, without ``frames.``.
    """
    labels = f"{name}.detections"
    query = store.frame_query()
    query[labels] = {"$elemMatch": {"index": None, "instance": {"$ne": None}}}
    if store.dataset._frame_collection.find_one(query, {"_id": 1}) is None:
        return ObjectIds()

    def identities() -> Iterator[Identity]:
        paths = [f"{labels}.index", f"{labels}.instance._id"]
        for document in store.frames(paths, unfiltered=True):
            for label in (document.get(name) or {}).get("detections") or []:
                yield identity(label)

    return ObjectIds.scan(identities())
