"""Detects which labels this package wrote, and whether a person has edited them.

A label's id shows: its first third is made of the field and frame, its second third of
the label's content, its last third of the sample, which makes it unique. A label whose
id has another first third was made by somebody else and is never cleared or replaced;
one whose second third doesn't fit its content was edited by somebody, and stays unless
the user asks otherwise. The labels themselves need no attribute for it, and clones of
datasets, whose samples have other ids, keep it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b, sha256
from itertools import islice
from typing import Any, Literal, TypeAlias

import fiftyone as fo
import numpy as np
from bson import ObjectId

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import Mask
from fiftyone_regioncap.dataset.fields import frames_field
from fiftyone_regioncap.dataset.geometry import labels_of, stored_mask
from fiftyone_regioncap.dataset.store import FRAMES_PREFIX, Document, frame_path

Owner: TypeAlias = Literal["own", "edited", "damaged", "foreign"]
"""Whose a label is: this package's, this package's but edited since, or but with a mask
that can't be read any more, or another's."""

_PART = 4  # bytes of a label's id that say where it is, what it says, whose it is
_MOST_NUMBERED = 1 << 16
_SAMPLES_AT_ONCE = 500


def place_prefix(sample_id: object, *place: object) -> bytes:
    """Hashes a place: a field and a frame, and then the sample too."""
    return _hash(*place) + _hash(sample_id, *place)


def _hash(*parts: object) -> bytes:
    return sha256("\x1f".join(map(str, parts)).encode()).digest()[:_PART]


def _id_at(place: bytes, content: bytes) -> ObjectId:
    return ObjectId(place[:_PART] + content + place[_PART:])


def is_at(label: Document, place: bytes) -> bool:
    """Returns whether this package wrote a label for a field and frame.

    The sample may be another: clones of datasets keep labels, and number samples anew.
    """
    return label["_id"].binary[:_PART] == place[:_PART]


def track_label_id(
    place: bytes, index: int, label: str | None, box: Sequence[float], mask: Mask | None
) -> ObjectId:
    """Returns the id of a track's label.

    Args:
        place: The :func:`place_prefix` of its sample, field and frame.
        index: The object's id.
        label: Label of the object.
        box: The relative box, or the points, as they are stored.
        mask: Cropped mask, bool (h, w).
    """
    numbers = struct.pack(f"{len(box)}d", *box)
    content = blake2b(f"{index}\x1f{label}".encode() + numbers, digest_size=_PART)
    if mask is not None:
        content.update(b"%d,%d" % mask.shape + np.packbits(mask).data)
    return _id_at(place, content.digest())


def prompt_label_id(place: bytes, label: fo.Detection | fo.Keypoint) -> ObjectId:
    """Returns the id of a prompt's label, made of its place and content."""
    if isinstance(label, fo.Detection):
        box, mask = label.bounding_box, label.mask
        return track_label_id(place, label.index, label.label, box, mask)
    flat = [coordinate for point in label.points for coordinate in point]
    return track_label_id(place, label.index, label.label, flat, None)


def owner_of_track_label(label: Document, place: bytes) -> Owner:
    """Determines the owner of a track's label; reads its mask.

    Args:
        label: As it lies in the database.
        place: The :func:`place_prefix` of its sample, field and frame.
    """
    if not is_at(label, place) or label.get("index") is None:
        return "foreign"
    try:
        mask = stored_mask(label)
    except FieldError:  # its file is gone; nobody edits a mask by removing it
        return "damaged"
    box = label.get("bounding_box") or np.ravel(label.get("points") or []).tolist()
    same = track_label_id(place, label["index"], label.get("label"), box, mask)
    content = slice(_PART, 2 * _PART)
    return "own" if label["_id"].binary[content] == same.binary[content] else "edited"


def refuse_foreign_labels(
    dataset: fo.Dataset,
    field: str,
    sample_ids: Iterable[str],
    is_foreign: Callable[[Document, ObjectId, int], bool],
) -> None:
    """Makes sure that samples hold no labels of others in an output field.

    Args:
        dataset: The dataset.
        field: The output field; with ``frames.`` in front, of frames.
        sample_ids: The samples that would be written.
        is_foreign: Function of a label, the id of its sample and its frame's number (0
            for labels of samples).

    Raises:
        FieldError: When there are any; names a free field.
    """
    frames = field.startswith(FRAMES_PREFIX)
    name = frame_path(field)
    if not dataset.has_field(field):
        return
    collection = dataset._frame_collection if frames else dataset._sample_collection
    key = "_sample_id" if frames else "_id"
    found, names = 0, set()
    remaining = iter(sample_ids)
    while chunk := [ObjectId(i) for i in islice(remaining, _SAMPLES_AT_ONCE)]:
        query = {key: {"$in": chunk}, f"{name}._cls": {"$exists": True}}
        kept: dict[str, Any] = {f"{name}.{part}": 0 for part in _heavy(dataset, field)}
        for document in collection.find(query, kept or None):
            number = document["frame_number"] if frames else 0
            for label in labels_of(document.get(name)):
                if is_foreign(label, document[key], number):
                    found += 1
                    names.add(str(label.get("label")))
    if found:
        listed = ", ".join(sorted(names)[:3])
        raise FieldError(
            f"{field} holds {found} labels that this plugin did not write ({listed}); "
            f"write to {free_field(dataset, field)}, or ask to merge with them"
        )


def free_field(dataset: fo.Dataset, field: str) -> str:
    """Returns a name for a field like this one that the dataset doesn't have yet."""
    number = 2
    while dataset.has_field(f"{field}_{number}"):
        number += 1
    return f"{field}_{number}"


def _heavy(dataset: fo.Dataset, field: str) -> list[str]:
    """Large parts of labels that don't determine their owner."""
    kind = dataset.get_field(field)
    inner = getattr(getattr(kind, "document_type", None), "_LABEL_LIST_FIELD", None)
    prefix = f"{inner}." if inner else ""
    return [f"{prefix}mask", f"{prefix}region_embedding"]


def track_label_is_foreign(
    name: str,
) -> Callable[[Document, ObjectId, int], bool]:
    """Detects foreign labels in tracks; see :func:`refuse_foreign_labels`."""
    name = frame_path(frames_field(name))

    def is_foreign(label: Document, sample_id: ObjectId, number: int) -> bool:
        return not is_at(label, place_prefix(sample_id, name, number))

    return is_foreign


def numbered_id(number: int, sample_id: object, *place: object) -> ObjectId:
    """Returns the id of the label with a number at a place."""
    return _id_at(place_prefix(sample_id, *place), number.to_bytes(_PART, "big"))


def is_numbered(label: Document, sample_id: object, *place: object) -> bool:
    """Returns whether a label's id is a :func:`numbered_id` of a place."""
    number = int.from_bytes(label["_id"].binary[_PART : 2 * _PART], "big")
    return number < _MOST_NUMBERED and is_at(label, place_prefix(sample_id, *place))
