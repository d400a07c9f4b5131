"""Ordered groups of images as videos.

FiftyOne's dynamic groups, ``group_by(..., order_by=...)``, are sequences of images. For
what works on videos, each is a sample of a temporary dataset of videos, whose frames
hold the images' labels. What is written there goes to the images' own labels.
"""

from __future__ import annotations

import mimetypes
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import bson
import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.media as fom
import fiftyone.core.odm as foo
from bson import ObjectId
from pymongo import UpdateMany, UpdateOne

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.field_names import BOOKKEEPING
from fiftyone_regioncap.dataset import caches, schema
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.fields import REGIONS, caption_fields
from fiftyone_regioncap.dataset.geometry import labels_of
from fiftyone_regioncap.dataset.store import (
    Document,
    now,
    reload_sample,
    require_stored,
    undisturbed,
)
from fiftyone_regioncap.dataset.targets import hides_labels
from fiftyone_regioncap.dataset.types import FieldTypes
from fiftyone_regioncap.video.image_source import LIST_SUFFIX, write_list
from fiftyone_regioncap.video.reader import read_metadata

_LISTS = "sequences"
"""Folder of the cache with lists of images, each of which is a video."""


def are_sequences(samples: foco.SampleCollection) -> bool:
    """Returns whether a collection groups images into sequences."""
    return bool(getattr(samples, "_is_dynamic_groups", False))


def ungrouped(samples: foco.SampleCollection) -> foco.SampleCollection:
    """Returns the images of sequences one by one; other collections as they are."""
    return samples.flatten() if are_sequences(samples) else samples


@contextmanager
def as_videos(samples: foco.SampleCollection) -> Iterator[Videos]:
    """Makes videos of a collection that groups images; others are as they are.

    Args:
        samples: A dataset or a view.

    Yields:
        The videos. What was written to them is with the images at the end, also when it
        ends by an error.

    Raises:
        FieldError: When the groups have no order, hold no images, or hide labels.
        VideoError: When an image can't be read.
    """
    if not are_sequences(samples):
        yield Videos(samples)
        return
    source = samples._root_dataset
    _, _, inside, order = samples._parse_dynamic_groups()
    if source.media_type != fom.IMAGE or order is None:
        raise FieldError(
            "groups are videos when they hold images and have an order; give a view "
            'such as dataset.group_by("scene", order_by="frame_number")'
        )
    if hides_labels(inside) or hides_labels(samples):
        raise FieldError(
            "the view hides labels of the images; group the images without filters of "
            "labels, as what is written goes beside the hidden ones"
        )
    # FiftyOne reads the type of media off the name, also of samples that it copies;
    # not at import, as ``mimetypes.init`` forgets what was added before.
    mimetypes.add_type("video/x-image-list", LIST_SUFFIX)
    videos = _Sequences(fo.Dataset(), source)
    caches.remove_abandoned(_LISTS)
    folder = caches.dataset_folder(_LISTS, videos.samples)
    names: set[str] = set()
    try:
        videos.copy_schema()
        for number, group in enumerate(samples.iter_dynamic_groups(), start=1):
            ids, files = group.values(["id", "filepath"])
            name = re.sub(r"[^\w.-]+", "_", _name(samples, group, number))[:80]
            name = f"{name}-{number}" if name.casefold() in names else name
            names.add(name.casefold())
            # What goes by names, such as splits, is the same each time.
            path = folder / source.slug / f"{name}{LIST_SUFFIX}"
            write_list(path, files)
            videos.add(str(path), [ObjectId(key) for key in ids])
        yield videos
    finally:
        try:
            for sample_id in videos.images:
                videos.sync(sample_id)
        finally:
            videos.samples.delete()
            shutil.rmtree(folder, ignore_errors=True)


def sequence_of(
    samples: foco.SampleCollection, image_id: str
) -> tuple[foco.SampleCollection, list[str]]:
    """Finds the sequence that an image is of.

    Args:
        samples: View that groups images into sequences.
        image_id: Id of the image.

    Returns:
        A view of this sequence alone, and the ids of its images in their order.
    """
    group, _, images, _ = samples._parse_dynamic_groups()
    (value,) = images.select(image_id).values(fo.ViewExpression(group))
    ids = samples.get_dynamic_group(value).values("id")
    return samples.select(ids), ids


def _name(
    view: foco.SampleCollection, group: foco.SampleCollection, number: int
) -> str:
    by = next(
        stage.field_or_expr
        for stage in reversed(view._stages)
        if stage.outputs_dynamic_groups
    )
    return str(group.first()[by]) if isinstance(by, str) else f"group-{number}"


@dataclass
class Videos:
    """Samples that are videos.

    Attributes:
        samples: The dataset or view of them.
    """

    samples: foco.SampleCollection

    def frames_field(self, name: str) -> str:
        """Returns the name under which the videos have a field of the images."""
        return name

    def media(self) -> list[str]:
        """Returns the paths of all that the videos are made of."""
        return self.samples._root_dataset.values("filepath")

    def sync(self, sample_id: str) -> None:
        """Writes what a sample has got to where it comes from."""


@dataclass
class _Sequences(Videos):
    """Sequences of images as samples of a dataset of videos.

    Attributes:
        source: The dataset of the images.
        images: Ids of the images by the id of their video; it is the first image's.
        labels: Names of the images' fields of labels.
        known: Hashes of labels as they were read, by image and field and label.
    """

    source: fo.Dataset
    images: dict[str, list[ObjectId]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    known: dict[tuple[ObjectId, str], dict[ObjectId, bytes]] = field(
        default_factory=dict
    )

    def frames_field(self, name: str) -> str:
        """See :meth:`Videos.frames_field`."""
        return f"frames.{name}" if name in self.labels else name

    def media(self) -> list[str]:
        """See :meth:`Videos.media`."""
        return self.source.values("filepath")

    def copy_schema(self) -> None:
        """Declares the images' labels on the frames, and what jobs keep."""
        videos = self.samples
        videos.media_type = fom.VIDEO
        for name, kind in self.source.get_field_schema().items():
            if _is_label(kind):
                self.labels.append(name)
                videos.add_frame_field(name, **foo.get_field_kwargs(kind))
            elif name.endswith(BOOKKEEPING):
                videos.add_sample_field(name, **foo.get_field_kwargs(kind))

    def add(self, path: str, ids: list[ObjectId]) -> None:
        """Adds a sequence of images as a video."""
        videos, source = self.samples, self.source
        kept = [n for n in videos.get_field_schema() if n.endswith(BOOKKEEPING)]
        first = source._sample_collection.find_one({"_id": ids[0]}) or {}
        metadata = fo.VideoMetadata(**asdict(read_metadata(path)))
        document = videos._make_dict(fo.Sample(filepath=path, metadata=metadata))
        time = now()
        document.update(
            {name: first.get(name) for name in kept},
            _id=ids[0],
            created_at=time,
            last_modified_at=time,
        )
        videos._sample_collection.insert_one(document)
        numbers = {key: number for number, key in enumerate(ids, start=1)}
        projection = dict.fromkeys(self.labels, 1)
        for image in source._sample_collection.find({"_id": {"$in": ids}}, projection):
            present = {n: image[n] for n in self.labels if image.get(n) is not None}
            for name, value in present.items():
                hashes = {one["_id"]: _hash(one) for one in labels_of(value)}
                self.known[image["_id"], name] = hashes
            if present:
                videos._frame_collection.insert_one(
                    {
                        **present,
                        "_sample_id": ids[0],
                        "_dataset_id": videos._doc.id,
                        "frame_number": numbers[image["_id"]],
                        "created_at": time,
                        "last_modified_at": time,
                    }
                )
        self.images[str(ids[0])] = ids
        self._restore_captions(str(ids[0]))

    def _restore_captions(self, sample_id: str) -> None:
        """Makes captions of tracks of those that are on the images' labels."""
        videos = self.samples
        fields = [
            name.removesuffix("_status")
            for name in videos.get_field_schema()
            if name.endswith("_status")
            and name.removesuffix("_status") not in self.labels
        ]
        runs: dict[tuple[Any, ...], CaptionRecord] = {}
        query = {"_sample_id": ObjectId(sample_id)}
        for document in videos._frame_collection.find(query).sort("frame_number", 1):
            frame = document["frame_number"] - 1
            for name in self.labels:
                for label in labels_of(document.get(name)):
                    if not label.get("caption_model") or label.get("index") is None:
                        continue
                    key = (name, label["index"], label.get("caption"))
                    record = runs.get(key) or _record(label, frame)
                    runs[key] = replace(record, support=(record.support[0], frame))
        for name in fields[:1] if runs else ():
            write_captions(videos[sample_id], name, runs.values())

    def sync(self, sample_id: str) -> None:
        """Writes what a video has got to its images.

        A label that somebody has changed on an image meanwhile stays as it is there.
        """
        videos, source = self.samples, self.source
        sample = videos[sample_id]
        records = [
            record
            for name in caption_fields(videos)
            for record in read_captions(sample, name)
        ]
        fields = [
            n for n, kind in videos.get_frame_field_schema().items() if _is_label(kind)
        ]
        for name in fields:
            kind = videos.get_field(f"frames.{name}")
            undisturbed(partial(source._merge_sample_field_schema, {name: kind}))
            if records and kind.document_type is fo.Detections:
                schema.declare_regions(source, name)
        ids = self.images[sample_id]
        updates: list[UpdateOne | UpdateMany] = []
        written: set[str] = set()
        check = FieldTypes(source).check
        query = {"_sample_id": ObjectId(sample_id)}
        for document in videos._frame_collection.find(query):
            key = ids[document["frame_number"] - 1]
            image = source._sample_collection.find_one(
                {"_id": key}, dict.fromkeys(fields, 1)
            )
            if image is None:  # deleted meanwhile
                continue
            values: Document = {}
            for name in fields:
                value = document.get(name)
                _describe(value, records, document["frame_number"] - 1)
                _keep_reviewed(value, image.get(name))
                merged = _merged(
                    value, image.get(name), self.known.get((key, name), {})
                )
                if merged != image.get(name):
                    check(name, merged)
                    written.add(name)
                    values[name] = merged
                self.known[key, name] = {
                    one["_id"]: _hash(one) for one in labels_of(value)
                }
            if values:
                values["last_modified_at"] = now()
                updates.append(UpdateOne({"_id": key}, {"$set": values}))
        said = {
            n: k
            for n, k in videos.get_field_schema().items()
            if n.endswith(BOOKKEEPING)
        }
        undisturbed(partial(source._merge_sample_field_schema, said))
        own = videos._sample_collection.find_one({"_id": ObjectId(sample_id)}) or {}
        kept = {name: own.get(name) for name in said}
        if kept:
            updates.append(UpdateMany({"_id": {"$in": ids}}, {"$set": kept}))
        if updates:
            require_stored(source, sorted(written))
            source._sample_collection.bulk_write(updates, ordered=False)
        for key in ids:
            reload_sample(source, key)


def _is_label(kind: Any) -> bool:
    return getattr(kind, "document_type", None) in (*REGIONS, fo.Heatmap)


def _hash(label: Document) -> bytes:
    return blake2b(bson.encode(label), digest_size=16).digest()


def _record(label: Document, frame: int) -> CaptionRecord:
    instance = label.get("instance")
    return CaptionRecord(
        label["index"],
        (frame, frame),
        label.get("label"),
        label.get("caption") or "",
        confidence=label.get("caption_confidence"),
        instance=None if instance is None else str(instance["_id"]),
        model=label.get("caption_model"),
        error=label.get("caption_error"),
    )


def _describe(value: Document | None, records: list[CaptionRecord], frame: int) -> None:
    """Puts onto labels what images' labels keep of the captions of their tracks."""
    for label in labels_of(value):
        for record in records:
            inside = record.support[0] <= frame <= record.support[1]
            # Tracks have it already; prompts of the same object have no caption.
            text = label.get("caption", "none") == (record.caption or None)
            if inside and text and record.index == label.get("index"):
                label["caption_confidence"] = record.confidence
                label["caption_model"] = record.model
                label["caption_error"] = record.error


def _keep_reviewed(ours: Document | None, theirs: Document | None) -> None:
    """Puts back what a person decided of captions, which their video doesn't know."""
    there = {one["_id"]: one for one in labels_of(theirs)}
    for label in labels_of(ours):
        known = there.get(label["_id"], {})
        if known.get("review") not in (None, "unreviewed"):
            label.update({k: v for k, v in known.items() if k.startswith("caption")})


def _merged(
    ours: Document | None, theirs: Document | None, known: dict[ObjectId, bytes]
) -> Document | None:
    """Merges a field as the video has it into what its image has now.

    Args:
        ours: The value on the video's frame.
        theirs: The value on the image.
        known: Hashes of the labels that were read from the image.
    """
    lists = ("detections", "polylines", "keypoints")
    inner = next((name for name in lists if name in (theirs or ours or {})), None)
    if inner is None or theirs is None:
        return ours if ours is not None else theirs
    new = {label["_id"]: label for label in labels_of(ours)}
    merged = []
    for label in labels_of(theirs):
        unchanged = known.get(label["_id"]) == _hash(label)
        if not unchanged:
            merged.append(label)  # somebody's, or changed since it was read
        elif label["_id"] in new:
            merged.append(new[label["_id"]])
        new.pop(label["_id"], None)
    added = [label for key, label in new.items() if key not in known]
    return {**theirs, inner: [*merged, *added]}
