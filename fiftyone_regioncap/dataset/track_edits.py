"""Gives labels of tracks other numbers, or removes them; captions follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, get_args

import fiftyone as fo
from bson import ObjectId

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset import fields, origins, status
from fiftyone_regioncap.dataset.captions import (
    CaptionMove,
    Key,
    caption_index,
    mirror_captions,
    move_captions,
)
from fiftyone_regioncap.dataset.geometry import labels_of, save_mask, stored_mask
from fiftyone_regioncap.dataset.objects import (
    Identity,
    Kind,
    keep_object_numbers,
    object_numbers,
    read_numbers,
)
from fiftyone_regioncap.dataset.ownership import (
    Owner,
    owner_of_track_label,
    place_prefix,
    track_label_id,
)
from fiftyone_regioncap.dataset.schema import (
    declare_objects,
    declare_tracks,
    objects_field,
)
from fiftyone_regioncap.dataset.store import (
    Document,
    FrameUpdate,
    Store,
    frame_path,
    now,
    stable_id,
)
from fiftyone_regioncap.dataset.tracks import CHUNK_FRAMES

NewNumber: TypeAlias = Callable[[int], int | None]
"""The number that an object's label gets by its 0-based frame; None removes it."""


@dataclass
class TrackChange:
    """What a change of tracks did.

    Attributes:
        labels: Number of labels that have another number.
        removed: Number of labels that were removed.
        captions: Number of captions that have another number.
        outdated: Number of captions that are tagged outdated.
    """

    labels: int = 0
    removed: int = 0
    captions: int = 0
    outdated: int = 0


@dataclass
class _Label:
    """A label with the number it has and the one it gets."""

    document: Document
    owner: Owner
    before: int
    after: int | None


@dataclass
class _Object:
    """What is known of an object."""

    frames: set[int] = field(default_factory=set)
    changed: set[int] = field(default_factory=set)
    instance: Document | None = None
    indexed: bool = True


def used_numbers(
    sample: fo.Sample | fo.SampleView, field: str
) -> tuple[set[int], set[int]]:
    """Returns the numbers that objects of a field have, and all that they ever had.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the tracks, with or without ``frames.`` in front.
    """
    store = replace(Store.of(sample), support=None)
    name = frame_path(field)
    there = set(_objects(store, name))
    used = set(there)
    for kind in get_args(Kind):
        used |= set(read_numbers(store, name, kind).values())
    used |= status.read_kept(sample, name).objects
    for captions in fields.caption_fields(store.dataset):
        value = store.sample_document(captions).get(captions)
        used |= {caption_index(label) for label in labels_of(value)}
    return there, used


def change_numbers(
    sample: fo.Sample | fo.SampleView, name: str, numbers: Mapping[int, NewNumber]
) -> TrackChange:
    """Gives the labels of objects other numbers, or removes them.

    A label that a job wrote stays a job's, and one that a person edited stays a
    person's. Where two labels of a frame get the same number, one stays: the one that
    a person edited, else the one that has the number already. A caption goes with its
    object where all frames of its window do; one whose window covers a frame where the
    object's label came or went is tagged outdated.

    Args:
        sample: Sample of a dataset of videos.
        name: Field of the tracks, with or without ``frames.`` in front.
        numbers: By the number of each object to change, that of its labels by frame.

    Returns:
        What changed.

    Raises:
        FieldError: When there is no such field or object, or it is read-only.
        Fenced: When another process works on the sample by now.
    """
    store, name = replace(Store.of(sample), support=None), frame_path(name)
    dataset = store.dataset
    fields.require_writable(dataset, fields.require_tracks(dataset, name))
    captions = fields.caption_fields(dataset)
    for other in captions:
        fields.require_writable(dataset, other)
    declare_tracks(dataset, name)
    objects = _objects(store, name)
    for number in numbers:
        if number not in objects:
            known = ", ".join(map(str, sorted(objects))) or "none"
            raise FieldError(
                f"frames.{name} holds no object {number} on this video; there are: "
                f"{known}"
            )
    change = TrackChange()
    shown = _mirrored(store, name, captions)
    before = {number: one.instance for number, one in objects.items()}
    renumbering = _Renumbering(store, name, numbers, objects, change)
    renumbering.run()
    affected = set(numbers) | {n for n, one in objects.items() if one.changed}
    _keep_record(store, sample, name, set(numbers), affected)
    move = _following(numbers, objects, before, renumbering.instances)
    for other in captions:
        moved, outdated = move_captions(sample, other, move)
        change.captions += sum(number is not None for _, number in moved)
        change.outdated += outdated
        origins.move_captions(sample, other, dict(moved))
    if shown is not None:
        mirror_captions(sample, shown, name, objects=affected)
    origins.edit(sample, name, affected, _objects(store, name))
    store.reload_frames()
    return change


class _Renumbering:
    """Writes the labels of one field anew, some frames at a time."""

    def __init__(
        self,
        store: Store,
        name: str,
        numbers: Mapping[int, NewNumber],
        objects: dict[int, _Object],
        change: TrackChange,
    ) -> None:
        self._store, self._name = store, name
        self._numbers, self._objects = numbers, objects
        self._change = change
        # The end of the folder of masks, whose root is the job's to choose.
        self._place = name, str(store.sample_id)
        # Before anything is written, as labels name their objects.
        self._known = object_numbers(store, name)
        self._left: set[Path] = set()
        self._made: set[Path] = set()
        self.instances = {
            number: one.instance for number, one in objects.items() if one.frames
        }

    def run(self) -> None:
        """Reads and writes all frames that have such objects."""
        pending: dict[int, list[_Label]] = {}
        for document in self._store.frames([self._name], unfiltered=True):
            labels = self._labels(document)
            if any(one.after != one.before for one in labels):
                pending[document["frame_number"]] = labels
            if len(pending) >= CHUNK_FRAMES:
                self._write(pending)
                pending = {}
        self._write(pending)

    def _labels(self, document: Document) -> list[_Label]:
        number = document["frame_number"]
        place = place_prefix(self._store.sample_id, self._name, number)
        found: list[_Label] = []
        for label in labels_of(document.get(self._name)):
            before = self._known.of(Identity.of(label))
            if before is None:
                continue
            new = self._numbers.get(before)
            after = before if new is None else new(number - 1)
            found.append(_Label(label, "own", before, after))
        if all(one.after == one.before for one in found):
            return []
        for one in found:
            one.owner = owner_of_track_label(one.document, place)
        kept: dict[int, _Label] = {}
        for one in found:
            if one.after is None:
                continue
            rival = kept.get(one.after)
            if rival is not None and _wins(rival, one):
                one.after = None
            else:
                if rival is not None:
                    rival.after = None
                kept[one.after] = one
        for one in found:
            if one.after != one.before:
                self._note(one, number - 1)
        return found

    def _note(self, label: _Label, frame: int) -> None:
        """Records that objects have a label less, or more, on a frame."""
        self._objects[label.before].changed.add(frame)
        if label.after is not None:
            self._objects.setdefault(label.after, _Object()).changed.add(frame)

    def _write(self, frames: Mapping[int, Sequence[_Label]]) -> None:
        time = now()
        removing, moving, brought = [], [], []
        for number, labels in frames.items():
            query: Document = {
                "_sample_id": self._store.sample_id,
                "frame_number": number,
            }
            path = f"{self._name}.detections"
            gone = [one.document for one in labels if one.after is None]
            if gone:
                ids = [label["_id"] for label in gone]
                pull = {"$pull": {path: {"_id": {"$in": ids}}}}
                removing.append(
                    FrameUpdate(query, {**pull, "$set": {"last_modified_at": time}})
                )
            values: Document = {"last_modified_at": time}
            filters: list[Document] = []
            for one in labels:
                if one.after is None or one.after == one.before:
                    continue
                key = f"l{len(filters)}"
                new = self._renumbered(one, number)
                brought.append({"_cls": "Detection", **new})
                values |= {f"{path}.$[{key}].{k}": v for k, v in new.items()}
                filters.append({f"{key}._id": one.document["_id"]})
            if filters:
                moving.append(
                    FrameUpdate(query, {"$set": values}, array_filters=filters)
                )
            self._change.removed += len(gone)
            self._change.labels += len(filters)
            self._left |= {file for one in gone if (file := self._file(one))}
        self._store.write_frames(self._name, removing)
        self._store.write_frames(self._name, moving, brought)
        # Only now, as labels name them until here; and a label that goes may have had
        # the name of another that stays.
        for stale in self._left - self._made:
            stale.unlink(missing_ok=True)
        self._left, self._made = set(), set()

    def _renumbered(self, label: _Label, number: int) -> Document:
        """Returns what changes of a label with its number."""
        assert label.after is not None
        document = label.document
        target = self._objects[label.after]
        new: Document = {
            "index": label.after,
            "instance": self._instance(label.after, label),
        }
        if label.after in self.instances and not target.indexed:
            new["index"] = None  # as the object's other labels, which have none
        if label.owner == "own":
            place = place_prefix(self._store.sample_id, self._name, number)
            new["_id"] = track_label_id(
                place,
                label.after,
                document.get("label"),
                document["bounding_box"],
                stored_mask(document),
            )
        path = self._file(document)
        if path is not None:
            # The next label of the old number must not write over it.
            mask = stored_mask(document)
            assert mask is not None
            moved = path.with_name(f"{number:06d}-{label.after}.png")
            save_mask(mask, moved)
            new["mask_path"] = str(moved)
            self._left.add(path)
            self._made.add(moved)
        return new

    def _instance(self, number: int, label: _Label) -> Document | None:
        """Returns the instance of an object; a new one's depends on its number."""
        if number not in self.instances:
            whole = self._objects[label.before].frames
            new = self._numbers.get(label.before)
            renamed = new is not None and all(new(f) == number for f in whole)
            own = label.document.get("instance")
            default = _default_instance(self._store, self._name, label.before)
            if not (renamed and own and own["_id"] != default):
                default = _default_instance(self._store, self._name, number)
                own = {"_cls": "Instance", "_id": default}
            self.instances[number] = own
        return self.instances[number]

    def _file(self, label: Document) -> Path | None:
        """Returns a label's mask file if it is this package's."""
        path = Path(label.get("mask_path") or "")
        if path.parts[-3:-1] != self._place or not path.is_file():
            return None
        return path


def _wins(one: _Label, other: _Label) -> bool:
    """Returns whether the first of two labels of a number stays."""

    def rank(label: _Label) -> tuple[bool, bool]:
        return label.owner == "edited", label.before == label.after

    return rank(one) >= rank(other)


def _default_instance(store: Store, name: str, number: int) -> ObjectId:
    return stable_id(store.sample_id, name, number)


def _objects(store: Store, name: str) -> dict[int, _Object]:
    """Reads which objects there are and where, without their masks."""
    known = object_numbers(store, name)
    paths = [f"{name}.detections.{key}" for key in ("index", "instance", "label")]
    found: dict[int, _Object] = {}
    for document in store.frames(paths, unfiltered=True):
        for label in labels_of(document.get(name)):
            number = known.of(Identity.of(label))
            if number is not None:
                one = found.setdefault(number, _Object())
                one.frames.add(document["frame_number"] - 1)
                one.instance = one.instance or label.get("instance")
                one.indexed = one.indexed and label.get("index") is not None
    return found


def _keep_record(
    store: Store,
    sample: fo.Sample | fo.SampleView,
    name: str,
    changed: set[int],
    affected: set[int],
) -> None:
    """Keeps the numbers of objects true, and those that are gone from being reused."""
    record = read_numbers(store, name, "labels")
    left = set(_objects(store, name))
    kept = {key: number for key, number in record.items() if number not in affected}
    for number in changed - left:
        kept[str(stable_id("gone", number))] = number
    if kept != record:
        declare_objects(store.dataset, name)
        store.write_sample({f"{objects_field(name)}.labels": kept}, under=name)
    if record:
        keep_object_numbers(sample, name)


def _following(
    numbers: Mapping[int, NewNumber],
    objects: Mapping[int, _Object],
    before: Mapping[int, Document | None],
    after: Mapping[int, Document | None],
) -> CaptionMove:
    """Returns how captions follow a change."""

    def number(key: Key) -> int | None:
        index, (first, last) = key
        new = numbers.get(index)
        if new is None:
            return index
        there = [f for f in objects[index].frames if first <= f <= last]
        after = {new(frame) for frame in there or (first, last)}
        return after.pop() if len(after) == 1 else index

    def outdated(key: Key) -> bool:
        index, (first, last) = key
        one, moved_to = objects.get(index), number(key)
        if one is None:
            return False
        frames = {f for f in one.changed if first <= f <= last}
        if moved_to == index:
            return bool(frames)
        # What came along with the caption is as it was, unless something was there.
        target = None if moved_to is None else objects.get(moved_to)
        there = set() if target is None else target.frames
        return moved_to is None or any(first <= f <= last for f in there)

    return CaptionMove(number, outdated, before, after)


def _mirrored(store: Store, name: str, captions: Sequence[str]) -> str | None:
    """Returns the field whose captions are on the labels of tracks."""
    path = f"{name}.detections.caption"
    query = {**store.frame_query(), path: {"$nin": [None, ""]}}
    document = store.dataset._frame_collection.find_one(query, {path: 1}) or {}
    shown = {label.get("caption") for label in labels_of(document.get(name))}
    for field_name in captions:
        value = store.sample_document(field_name).get(field_name)
        if shown & {label.get("caption") for label in labels_of(value)} - {None}:
            return field_name
    return None
