"""Numbers the objects that labels are of, in the same way each time.

An object is named by its labels' ``index``, else by their ``instance``, else by the id
of its only label. The numbers that objects were given are kept with their sample, so
that they depend neither on what a view hides nor on labels that are added later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, count
from typing import Literal, TypeAlias

import fiftyone as fo
from bson import ObjectId

from fiftyone_regioncap.dataset.schema import declare_objects, objects_field
from fiftyone_regioncap.dataset.store import Document, Store, frame_path, stable_id

Kind: TypeAlias = Literal["prompts", "labels"]
"""Labels that were numbered: the prompts of a field of tracks, or its own labels."""

Part: TypeAlias = Literal["label", "instance"]
"""What tells objects of one index apart."""


IDENTITY_PATHS = ("index", "instance._id", "label")
"""What of a label names its object."""


@dataclass(frozen=True)
class Identity:
    """What names the object of a label; None where the label has no such name.

    Attributes:
        index: The label's ``index``.
        instance: Id of the label's ``instance``.
        label: The label's ``label``, which is part of the name beside an index.
        id: Id of the label itself, where a label may be an object by itself.
    """

    index: int | None = None
    instance: str | None = None
    label: str | None = None
    id: str | None = None

    @classmethod
    def of(cls, label: Document, *, alone: bool = False) -> Identity:
        """Reads the identity of a label.

        Args:
            label: The label as it lies in the database.
            alone: Whether a label without index and instance is an object by itself.
        """
        index, instance = label.get("index"), label.get("instance")
        return cls(
            None if index is None else int(index),
            None if instance is None else str(instance["_id"]),
            label.get("label"),
            str(label["_id"]) if alone else None,
        )

    @property
    def linked(self) -> bool:
        """Whether an index or an instance links the label to others of its object."""
        return self.index is not None or self.instance is not None


@dataclass
class ObjectNumbers:
    """Numbers of objects by the identities of their labels.

    An ``index`` is its object's number, on all frames and also where the label changes
    over time. Only an index that one frame has twice, with different labels or
    instances, names several objects: one for each label (instance), of which the first
    keeps the number. An object without an index keeps the number that it was given
    before; a new one gets the smallest number from 1 that was never used.

    Attributes:
        record: Numbers that were given, by key; to be stored, and read next time.
    """

    record: dict[str, int] = field(default_factory=dict)
    _numbers: dict[Identity, int] = field(default_factory=dict)
    _named: dict[str, int] = field(default_factory=dict)
    _splits: dict[int, Part] = field(default_factory=dict)

    @classmethod
    def scan(
        cls,
        labels: Iterable[tuple[int, Identity]],
        known: Mapping[str, int] | None = None,
        taken: Collection[int] = (),
    ) -> ObjectNumbers:
        """Numbers the objects of all labels of a field.

        Args:
            labels: Frames and identities of the labels, those that a view hides
                included, in the order of frames.
            known: The :attr:`record` of the last time.
            taken: Numbers that new objects don't get.
        """
        labels = list(labels)
        own = list(dict.fromkeys(identity for _, identity in labels))
        numbers = cls(dict(known or {}))
        indexes = numbers._indexes(own)
        numbers._splits = numbers._find_splits(labels, indexes)
        numbers._assign(indexes, {*taken, *numbers.record.values()})
        return numbers

    def of(self, identity: Identity) -> int | None:
        """Returns the number of a label's object; None when nothing names it."""
        index = identity.index
        if index is None:
            return self._named.get(identity.instance or identity.id or "")
        if index in self._splits:
            return self.record.get(self._key(index, identity) or "", index)
        return index

    def find(self, identity: Identity) -> int | None:
        """Returns the number of the object that a label of another field is about.

        A label without index and instance is about the only object of its name, or the
        only one there is.
        """
        instance, label = identity.instance, identity.label
        if identity.index is not None:
            number = self.of(identity)
            return number if number in self._numbers.values() else None
        found = {
            number
            for other, number in self._numbers.items()
            if (
                label is None or label == other.label
                if instance is None
                else instance == other.instance
            )
        }
        return found.pop() if len(found) == 1 else None

    def conditions(self, number: int) -> list[Document]:
        """Returns what the labels of an object fulfil in the database, any of these."""
        found: list[Document] = []
        for identity, other in self._numbers.items():
            index, instance = identity.index, identity.instance
            if other != number:
                continue
            if index is None:
                assert instance is not None
                condition: Document = {
                    "index": None,
                    "instance._id": ObjectId(instance),
                }
            elif index not in self._splits:
                condition = {"index": index}
            elif self._splits[index] == "label":
                condition = {"index": index, "label": identity.label}
            else:
                own = None if instance is None else ObjectId(instance)
                condition = {"index": index, "instance._id": own}
            if condition not in found:
                found.append(condition)
        return found or [{"index": number}]

    def _indexes(self, identities: Sequence[Identity]) -> dict[Identity, int | None]:
        """Returns indexes by identity: the own, the instance's, or one given before."""
        instances: dict[str, int] = {}
        for own in identities:
            if own.instance is not None and own.index is not None:
                instances.setdefault(own.instance, own.index)
        for own in identities:
            for key in (own.instance, own.id):
                if own.instance is not None and key in self.record:
                    instances.setdefault(own.instance, self.record[key])
        return {
            own: own.index
            if own.index is not None
            else instances.get(own.instance)
            if own.instance is not None
            else self.record.get(own.id or "")
            for own in identities
        }

    def _find_splits(
        self,
        labels: Iterable[tuple[int, Identity]],
        indexes: Mapping[Identity, int | None],
    ) -> dict[int, Part]:
        """Returns the indexes of several objects, and what tells these apart."""
        splits: dict[int, Part] = {}
        for key in self.record:
            split, _, part = key.rpartition(":")
            if split:
                splits[int(split)] = "label" if part.startswith("l") else "instance"
        frames: dict[tuple[int, int], dict[tuple[str | None, str | None], None]] = {}
        # What has an index now is not what was given its number before if it is called
        # otherwise.
        names: dict[tuple[int, bool], set[str]] = {}
        for frame, own in labels:
            index = indexes[own]
            if index is None:
                continue
            frames.setdefault((frame, index), {})[own.instance, own.label] = None
            if own.label is not None:
                names.setdefault((index, own.index is None), set()).add(own.label)
        for (index, given), labeled in names.items():
            if given and names.get((index, False), labeled) != labeled:
                splits.setdefault(index, "label")
        for (_, index), found in frames.items():
            for (instance, label), (other, name) in combinations(found, 2):
                if instance == other and instance is not None:
                    continue
                if None not in (label, name) and label != name:
                    splits.setdefault(index, "label")
                elif None not in (instance, other):
                    splits.setdefault(index, "instance")
        return splits

    def _key(self, index: int, identity: Identity) -> str | None:
        """Returns the key of one of the objects of an index; None for the first."""
        by_label = self._splits[index] == "label"
        part = identity.label if by_label else identity.instance
        if part is None:
            return None
        return f"{index}:{'l' if by_label else 'i'}{stable_id(part)}"

    def _assign(self, indexes: Mapping[Identity, int | None], taken: set[int]) -> None:
        """Numbers the objects, those that have an index or a number first."""
        taken |= {index for index in indexes.values() if index is not None}
        following = (number for number in count(1) if number not in taken)

        def named() -> dict[Identity, str | None]:
            return {
                own: self._key(index, own)
                for own, index in indexes.items()
                if index is not None and index in self._splits
            }

        keys = named()
        owned = {self.record[key] for key in keys.values() if key in self.record}
        for number in owned & set(indexes.values()):
            # An index that was given to another object as its number in the meantime.
            if number is not None and number not in self._splits:
                self._splits[number] = "label"
        keys = named()

        def newer(own: Identity) -> tuple[bool, bool]:
            known = self.record.get(own.instance or own.id or "")
            return known != indexes[own], own.index is not None

        # What had the number before keeps it.
        for own in sorted(keys, key=newer):
            key, index = keys[own], indexes[own]
            assert index is not None
            if key is not None and key not in self.record:
                free = index not in owned
                self.record[key] = index if free else next(following)
                taken.add(self.record[key])
                owned.add(self.record[key])
        new: dict[str | None, int] = {}
        for own, index in indexes.items():
            name = own.instance or own.id
            if index is None:
                number = new[name] if name in new else next(following)
                new[name] = number
                taken.add(number)
            else:
                number = self.record.get(keys.get(own) or "", index)
            self._numbers[own] = number
            if name is not None and (own.instance is not None or own.index is None):
                self.record[name] = self._named.setdefault(name, number)
        self._record_first_labels()

    def _record_first_labels(self) -> None:
        """Records a label of each object, by which it is found if its index goes."""
        recorded = set()
        for own, number in self._numbers.items():
            if own.id is not None and number not in recorded:
                recorded.add(number)
                self.record[own.id] = number


def read_numbers(store: Store, field: str, kind: Kind) -> dict[str, int]:
    """Reads the record of the numbers that a sample's objects were given.

    Args:
        store: Store of the sample.
        field: Field of the tracks, with or without ``frames.`` in front.
        kind: Which labels the numbers were given to.
    """
    path = f"{objects_field(field)}.{kind}"
    found = store.sample_document(path).get(objects_field(field)) or {}
    return dict(found.get(kind) or {})


def write_numbers(
    store: Store,
    field: str,
    kind: Kind,
    numbers: ObjectNumbers,
    known: Mapping[str, int],
) -> None:
    """Keeps the numbers that a sample's objects were given, so that they stay.

    Args:
        store: Store of the sample.
        field: Field of the tracks, with or without ``frames.`` in front.
        kind: Which labels the numbers were given to.
        numbers: The numbers.
        known: The record that they were made from.
    """
    if numbers.record != known:
        declare_objects(store.dataset, field)
        store.write_sample({f"{objects_field(field)}.{kind}": numbers.record})


def object_numbers(store: Store, field: str) -> ObjectNumbers:
    """Numbers the objects of a field of tracks.

    Labels are read only if some have no index, or one frame has an index twice; none of
    the tracks that this package writes are so.

    Args:
        store: Store of the sample.
        field: Name of the frame-level Detections, with or without ``frames.``.
    """
    labels = f"{frame_path(field)}.detections"
    indexes = {"$ifNull": [f"${labels}.index", []]}
    store = replace(store, support=None)
    query = store.frame_query()
    query["$or"] = [
        {labels: {"$elemMatch": {"index": None, "instance": {"$ne": None}}}},
        {"$expr": {"$ne": [{"$size": indexes}, {"$size": {"$setUnion": [indexes]}}]}},
    ]
    known = read_numbers(store, field, "labels")
    if not any(":" in key for key in known):
        found = store.dataset._frame_collection.find_one(query, {"_id": 1})
        if found is None:
            return ObjectNumbers()
    return ObjectNumbers.scan(_identities(store, field, known), known)


def keep_object_numbers(sample: fo.Sample | fo.SampleView, field: str) -> None:
    """Keeps the numbers of the objects of a field of tracks, before they are used.

    They then also outlast a change of what names the objects, such as from indexes to
    instances.
    """
    store = replace(Store.of(sample), support=None)
    known = read_numbers(store, field, "labels")
    numbers = ObjectNumbers.scan(_identities(store, field, known), known)
    write_numbers(store, field, "labels", numbers, known)


def _identities(
    store: Store, field: str, known: Collection[str]
) -> Iterator[tuple[int, Identity]]:
    """Yields what names the objects of a field of tracks, with frame numbers.

    The ids of labels come with the first label of each name, and where they are known.
    """
    name = frame_path(field)
    paths = [f"{name}.detections.{key}" for key in ("_id", *IDENTITY_PATHS)]
    seen: set[Identity] = set()
    for document in store.frames(paths, unfiltered=True):
        for label in (document.get(name) or {}).get("detections") or []:
            identity = Identity.of(label)
            if not identity.linked:
                continue
            own = str(label["_id"])
            if identity not in seen or own in known:
                seen.add(identity)
                identity = replace(identity, id=own)
            yield document["frame_number"], identity
