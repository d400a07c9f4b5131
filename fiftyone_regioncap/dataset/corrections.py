"""Finds the labels of tracks that people corrected, and marks captions outdated."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import fiftyone as fo
from bson import ObjectId

from fiftyone_regioncap.core.types import Prompt, paste_mask
from fiftyone_regioncap.dataset.captions import OUTDATED
from fiftyone_regioncap.dataset.fields import require_writable
from fiftyone_regioncap.dataset.geometry import labels_of, pixel_box, stored_mask
from fiftyone_regioncap.dataset.ownership import (
    Owner,
    owner_of_track_label,
    place_prefix,
)
from fiftyone_regioncap.dataset.store import Document, Store, frame_path


@dataclass(frozen=True)
class TrackLabel:
    """A label of a track as it is stored, with whose it is.

    Attributes:
        frame: 0-based frame.
        index: Object id.
        owner: Whose it is: ``"edited"`` by a person, or as a job wrote it.
        changed: Time of the last change of its frame.
        label: The label.
    """

    frame: int
    index: int
    owner: Owner
    changed: datetime | None
    label: Document

    def prompt(self, height: int, width: int) -> Prompt:
        """Returns the label as a prompt: its mask, or its box.

        Args:
            height: Height of the video's frames in pixels.
            width: Width of the video's frames in pixels.
        """
        box = pixel_box(self.label["bounding_box"], height, width)
        mask = stored_mask(self.label)
        return Prompt(
            self.index,
            self.frame,
            box=box if mask is None else None,
            mask=None if mask is None else paste_mask(mask, box, height, width),
            label=self.label.get("label"),
        )


def track_labels(
    sample: fo.Sample | fo.SampleView,
    field: str,
    objects: Collection[int] | None = None,
) -> list[TrackLabel]:
    """Reads the labels of tracks, masks included, by frame.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the tracks, with or without ``frames.`` in front.
        objects: Ids of the objects; None for all that have an index.
    """
    store, name = Store.of(sample), frame_path(field)
    documents = store.frames([name, "last_modified_at"])
    return _track_labels(documents, store.sample_id, name, objects)


def sequence_labels(
    dataset: fo.Dataset, ids: Sequence[str], field: str
) -> list[TrackLabel]:
    """Reads the labels of tracks of a sequence of images; see :func:`track_labels`.

    Args:
        dataset: Dataset of the images.
        ids: Ids of the images in their order.
        field: Field of the images that holds the tracks.
    """
    numbers = {ObjectId(key): number for number, key in enumerate(ids, start=1)}
    documents = dataset._sample_collection.find(
        {"_id": {"$in": list(numbers)}}, {field: 1, "last_modified_at": 1}
    )
    frames = [{**one, "frame_number": numbers[one["_id"]]} for one in documents]
    frames.sort(key=lambda one: one["frame_number"])
    return _track_labels(frames, ids[0], field, None)


def _track_labels(
    frames: Iterable[Document],
    sample_id: object,
    name: str,
    objects: Collection[int] | None,
) -> list[TrackLabel]:
    found = []
    for document in frames:
        number = document["frame_number"]
        place = place_prefix(sample_id, name, number)
        for label in labels_of(document.get(name)):
            index = label.get("index")
            if index is None or not (objects is None or index in objects):
                continue
            owner = owner_of_track_label(label, place)
            changed = document.get("last_modified_at")
            found.append(TrackLabel(number - 1, int(index), owner, changed, label))
    return found


def instance_of(labels: Iterable[TrackLabel]) -> str | None:
    """Returns the id of the instance that links the labels of a track."""
    instances = (label.label.get("instance") for label in labels)
    return next((str(one["_id"]) for one in instances if one), None)


def last_edited(labels: Collection[TrackLabel]) -> TrackLabel | None:
    """Returns the label that a person edited last; None when none was edited."""
    edited = [label for label in labels if label.owner == "edited"]
    return max(
        edited,
        key=lambda label: (label.changed or datetime.min, label.frame),
        default=None,
    )


def mark_outdated(
    sample: fo.Sample | fo.SampleView,
    captions: str,
    object_id: int,
    instance: str | None = None,
) -> int:
    """Tags the captions of an object whose track was changed.

    A caption that is made anew loses the tag.

    Args:
        sample: Sample of a dataset of videos.
        captions: Field of the captions.
        object_id: Id of the object.
        instance: Id of its instance; captions with another one are of another track.

    Returns:
        Number of captions that are tagged.

    Raises:
        FieldError: When the field is read-only.
    """
    store = Store.of(sample)
    require_writable(store.dataset, captions)
    marked = []
    for label in labels_of(store.sample_document(captions).get(captions)):
        linked = label.get("instance")
        same = not (linked and instance) or str(linked["_id"]) == instance
        if label.get("index") == object_id and same:
            marked.append(label["_id"])
    if marked:
        path = f"{captions}.detections.$[own].tags"
        store.write_sample(
            {},
            [{"own._id": {"$in": marked}}],
            extra={"$addToSet": {path: OUTDATED}},
            under=captions,
        )
    return len(marked)
