"""Writes masks as tracks while they are made, and reads tracks back."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias, get_args

import fiftyone as fo
import numpy as np
from bson import ObjectId
from pymongo.errors import DocumentTooLarge, OperationFailure, PyMongoError

from fiftyone_regioncap.core.errors import FieldError, VideoError
from fiftyone_regioncap.core.types import FrameMasks, Mask, Track, crop_mask, paste_mask
from fiftyone_regioncap.dataset import locks
from fiftyone_regioncap.dataset.fields import (
    frames_field,
    require_output,
    require_tracks,
)
from fiftyone_regioncap.dataset.geometry import (
    inline_mask,
    pixel_box,
    relative_box,
    save_mask,
    stored_mask,
    sync_masks,
)
from fiftyone_regioncap.dataset.metadata import describe, frame_size, inside
from fiftyone_regioncap.dataset.objects import (
    IDENTITY_PATHS,
    Identity,
    object_numbers,
)
from fiftyone_regioncap.dataset.ownership import (
    Owner,
    owner_of_track_label,
    place_prefix,
    track_label_id,
    track_label_is_foreign,
)
from fiftyone_regioncap.dataset.schema import declare_tracks
from fiftyone_regioncap.dataset.store import (
    FRAMES_PER_QUERY,
    Document,
    FrameUpdate,
    Store,
    frame_path,
    is_too_large,
    now,
    stable_id,
)

MaskStorage: TypeAlias = Literal["auto", "inline", "disk"]
"""Storage of masks: database, PNG files, or files only where a frame's masks, or those
of the whole video, would near MongoDB's limits."""

CHUNK_FRAMES = 64
"""Frames written at once; what a killed job loses at most."""

CHUNK_BYTES = 8 * 2**20
"""Masks held back at most before they are written."""

FRAME_BYTES = 8 * 2**20
"""Masks of one frame that still go into the database: half of MongoDB's limit for a
document, the rest is for the frame's other fields."""

VIDEO_BYTES = 12 * 2**20
"""Size of a video's frames in the database up to which masks go there too. FiftyOne's
filters join the frames of a video into one document, for which MongoDB 6 allows 16 MB;
the rest is for the labels beside their masks and for what others write."""

_FrameLabels: TypeAlias = dict[int, Document | None]
"""A frame's labels by object id; None takes the label away that is there."""


class TrackWriter:
    """Writes the masks of one sample into a frame field, some frames at a time.

    Each frame's labels are merged by ``index`` with those that are there: objects of a
    :class:`FrameMasks` replace their own earlier labels, others stay, so that a
    backward pass can follow a forward pass, and writing the same thing twice changes
    nothing, ids included. Labels that others made, or that a person has edited, are
    never replaced (see :mod:`fiftyone_regioncap.dataset.ownership`). Use it as a
    context manager; what was written is in the database when it ends, also when it ends
    by an error.

    Save the sample before: its frames in memory are reloaded at the end.
    """

    def __init__(
        self,
        sample: fo.Sample | fo.SampleView,
        field: str,
        *,
        instances: Mapping[int, str] | None = None,
        labels: Mapping[int, str | None] | None = None,
        mask_storage: MaskStorage = "auto",
        output_dir: str | Path | None = None,
        chunk_frames: int = CHUNK_FRAMES,
        overwrite_edited: bool = False,
        expected_frames: int | None = None,
    ) -> None:
        """Declares the field; writes nothing yet.

        Args:
            sample: Sample of a dataset of videos.
            field: Field for the tracks, with or without ``frames.`` in front.
            instances: Ids of ``fo.Instance`` by object id; objects without one get one
                that is the same for every run on this sample and field.
            labels: Labels of the objects, by object id.
            mask_storage: Storage of masks; see :data:`MaskStorage`. Default ``"auto"``.
            output_dir: Folder for masks on disk; None means FiftyOne's folder of the
                dataset. Files are ``<field>/<sample id>/<frame number>-<index>.png``.
            chunk_frames: Number of frames that are written at once.
            overwrite_edited: Whether labels that a person has edited may be replaced.
            expected_frames: Number of frames that will be written, from which the total
                size is estimated; None means all of the video.

        Raises:
            FieldError: When the field exists with another type, or ``mask_storage`` is
                unknown.
        """
        if mask_storage not in get_args(MaskStorage):
            raise FieldError(
                f"no mask storage {mask_storage!r}; choose one of "
                + ", ".join(get_args(MaskStorage))
            )
        self._store = Store.of(sample)
        self._name = frame_path(require_output(field))
        declare_tracks(self._store.dataset, self._name)
        self._labels = labels or {}
        self._instances = {
            object_id: ObjectId(instance)
            for object_id, instance in (instances or {}).items()
        }
        self._storage = mask_storage
        self._folder = mask_folder(self._store, self._name, output_dir)
        self._expected = expected_frames
        self._room: int | None = None  # bytes that the video's frames may still grow
        self._chunk_frames = chunk_frames
        self._pending: dict[int, _FrameLabels] = {}  # by frame number
        self._pending_bytes = 0
        self._files: list[Path] = []  # written since the last durable flush
        self._overwrite_edited = overwrite_edited
        # Object ids, and ids of labels, that stay as they are, by frame number.
        self._kept: dict[int, set[int | ObjectId]] | None = None
        # Object ids by the ids of labels that may be replaced, by frame number.
        self._own: dict[int, dict[ObjectId, int]] = {}

    def __enter__(self) -> TrackWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, PyMongoError):
            return  # what it was about to write is made again
        self.flush()
        for path in self._folder.glob("*.part"):  # of a job that was killed
            path.unlink(missing_ok=True)
        self._store.reload_frames()

    def instance(self, object_id: int) -> str:
        """Returns the id of the ``fo.Instance`` that links an object's labels."""
        if object_id not in self._instances:
            self._instances[object_id] = stable_id(
                self._store.sample_id, self._name, object_id
            )
        return str(self._instances[object_id])

    def write(self, frame_masks: FrameMasks) -> None:
        """Takes one frame's masks; writes when a chunk is full.

        Args:
            frame_masks: Masks in any order of frames; an object without a mask loses
                the label that an earlier run left there.
        """
        number = frame_masks.frame + 1
        if number in self._pending:
            self.flush()
        if self._kept is None:
            self._kept = {}
            for frame, label, owner in self._owned(None):
                self._keep(frame, label, owner)
        place = place_prefix(self._store.sample_id, self._name, number)
        kept = self._kept.get(number, set())
        labels: _FrameLabels = {}
        for object_id, item in frame_masks.objects.items():
            if object_id in kept:
                continue
            labels[object_id] = None
            cropped = None if item.mask is None else crop_mask(item.mask)
            if item.mask is None or cropped is None:
                continue
            box, mask = cropped
            name = self._labels.get(object_id)
            relative = relative_box(box, *item.mask.shape)
            label_id = track_label_id(place, int(object_id), name, relative, mask)
            if label_id in kept:  # a person gave it another index
                continue
            labels[object_id] = {
                "_cls": "Detection",
                "_id": label_id,
                "attributes": {},
                "tags": [],
                "label": name,
                "bounding_box": relative,
                "mask": inline_mask(mask),
                "confidence": float(item.score),
                "index": int(object_id),
                "instance": {
                    "_cls": "Instance",
                    "_id": ObjectId(self.instance(object_id)),
                },
                "keyframe": object_id in frame_masks.prompted,
                "caption": None,
            }
        size = _mask_bytes(labels)
        if self._storage == "disk" or (self._storage == "auto" and size > FRAME_BYTES):
            self._move_to_disk(number, labels)
            size = 0
        self._pending[number] = labels
        self._pending_bytes += size
        if (
            len(self._pending) >= self._chunk_frames
            or self._pending_bytes >= CHUNK_BYTES
        ):
            self.flush()

    def flush(self, *, durable: bool = False) -> None:
        """Writes what was taken so far.

        Args:
            durable: Whether to wait until all that was written outlasts a power loss.

        Raises:
            FieldError: When a frame's document would exceed MongoDB's limit and the
                masks must stay inline, or the field was deleted meanwhile.
        """
        self._flush()
        if durable:
            sync_masks(self._files)
            self._files.clear()
            locks.sync()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._storage == "auto" and self._outgrows():
            self._storage = "disk"
            for number, labels in self._pending.items():
                self._move_to_disk(number, labels)
        try:
            self._write(self._pending)
        except (OperationFailure, DocumentTooLarge) as error:
            self._write_one_by_one(error)
        self._pending.clear()
        self._pending_bytes = 0

    def _write(self, frames: Mapping[int, _FrameLabels]) -> None:
        """Writes frames' labels, by frame number."""
        self._store.write_frames(
            self._name,
            [self._update(number, labels) for number, labels in frames.items()],
            (label for labels in frames.values() for label in labels.values() if label),
        )

    def _outgrows(self) -> bool:
        """Estimates whether the video's masks will be too many for the database."""
        if self._room is None:
            self._room = VIDEO_BYTES - self._store.frame_bytes()
        if self._expected is None:
            self._expected = 0
            with contextlib.suppress(VideoError):  # then only what is there counts
                metadata = describe(self._store.sample).metadata
                self._expected = metadata.total_frame_count
        frames = len(self._pending)
        to_come = self._pending_bytes * max(self._expected, frames) / frames
        self._expected = max(self._expected - frames, 0)
        if to_come > self._room:
            return True
        self._room -= self._pending_bytes
        return False

    def clear_range(
        self,
        support: tuple[int, int] | None = None,
        objects: Collection[int] | None = None,
    ) -> None:
        """Removes what earlier runs left in the field, files of masks included.

        Labels that others made stay, and so do those that a person has edited, unless
        the writer may replace them.

        Args:
            support: (first, last) 0-based frames, inclusive; None means all frames.
            objects: Ids of the objects to remove; None means all.
        """
        self.flush()
        labels = f"{self._name}.detections"
        remove: dict[int, list[ObjectId]] = {}  # by frame number
        if self._kept is None:
            self._kept = {}
        for number, label, owner in self._owned(support):
            if self._keep(number, label, owner):
                continue
            if objects is None or label.get("index") in objects:
                remove.setdefault(number, []).append(label["_id"])
                path = Path(label.get("mask_path") or "")
                if path.parent == self._folder:
                    path.unlink(missing_ok=True)
        numbers = iter(sorted(remove))
        while chunk := list(islice(numbers, FRAMES_PER_QUERY)):
            gone = [label_id for number in chunk for label_id in remove[number]]
            time = {"$set": {"last_modified_at": now()}}
            query = self._store.frame_query(numbers=chunk)
            pull = {"$pull": {labels: {"_id": {"$in": gone}}}}
            self._store.write_frames(
                self._name, [FrameUpdate(query, {**pull, **time}, many=True)]
            )
            # What nobody has a label on is as it was before.
            query = {**query, labels: {"$size": 0}}
            unset = {"$unset": {self._name: ""}}
            self._store.write_frames(
                self._name, [FrameUpdate(query, {**unset, **time}, many=True)]
            )

    def _owned(
        self, support: tuple[int, int] | None
    ) -> Iterator[tuple[int, Document, Owner]]:
        """Yields the field's labels with their frame numbers and owners."""
        name, sample_id = self._name, self._store.sample_id
        for document in self._store.frames([name], support=support, unfiltered=True):
            number = document["frame_number"]
            place = place_prefix(sample_id, name, number)
            for label in (document.get(name) or {}).get("detections") or []:
                yield number, label, owner_of_track_label(label, place)

    def _keep(self, number: int, label: Document, owner: Owner) -> bool:
        """Records and returns whether a label has to stay."""
        assert self._kept is not None
        if owner == "damaged":  # what else a person changed of it can be told no more
            renamed = label.get("label") != self._labels.get(label["index"])
            owner = "edited" if renamed else "own"
        stays = owner == "foreign" or (owner == "edited" and not self._overwrite_edited)
        if stays:
            kept = self._kept.setdefault(number, set())
            kept.add(label["_id"])
            if label.get("index") is not None:
                kept.add(label["index"])
        else:
            self._own.setdefault(number, {})[label["_id"]] = label["index"]
        return stays

    def _update(self, number: int, labels: _FrameLabels) -> FrameUpdate:
        """Replaces these objects' labels on a frame, sorted by index with the others.

        An update by pipeline does so in one trip and without reading masks back. It
        names the labels that it replaces, so that others stay that came meanwhile.
        """
        present = [label for label in labels.values() if label is not None]
        own = self._own.setdefault(number, {})
        own.update({label["_id"]: label["index"] for label in present})
        replaced = [label_id for label_id, index in own.items() if index in labels]
        path = f"${self._name}.detections"
        others = {
            "$filter": {
                "input": {"$ifNull": [path, []]},
                "cond": {"$not": {"$in": ["$$this._id", replaced]}},
            }
        }
        merged = {
            "$sortArray": {
                # What comes from outside is marked as data: a label may begin with "$".
                "input": {"$concatArrays": [others, {"$literal": present}]},
                "sortBy": {"index": 1},
            }
        }
        value = {"_cls": "Detections", "detections": merged}
        # A frame without any object needs no document.
        return self._store.frame_update(number, self._name, value, upsert=bool(present))

    def _write_one_by_one(self, error: Exception) -> None:
        """Finds the frames that are too large for the database, and moves their masks.

        The updates that went through before are repeated, which changes nothing.
        """
        if not is_too_large(error):
            raise error
        for number, labels in self._pending.items():
            try:
                self._write({number: labels})
            except (OperationFailure, DocumentTooLarge) as too_large:
                if not is_too_large(too_large):
                    raise
                if self._storage == "inline":
                    raise FieldError(
                        f"the masks of frame {number} don't fit into one document of "
                        "MongoDB (16 MB); use mask_storage='auto' or 'disk'"
                    ) from too_large
                self._move_to_disk(number, labels)
                self._write({number: labels})

    def _move_to_disk(self, number: int, labels: _FrameLabels) -> None:
        for object_id, label in labels.items():
            if label is not None and "mask" in label:
                path = self._folder / f"{number:06d}-{object_id}.png"
                mask = stored_mask(label)
                assert mask is not None
                save_mask(mask, path)
                self._files.append(path)
                del label["mask"]
                label["mask_path"] = str(path)


def foreign_indexes(sample: fo.Sample | fo.SampleView, field: str) -> set[int]:
    """Returns the indexes of labels in a field of tracks that others made."""
    store, name = Store.of(sample), frame_path(field)
    is_foreign = track_label_is_foreign(name)
    paths = [f"{name}.detections.{key}" for key in ("_id", "index")]
    return {
        label["index"]
        for document in store.frames(paths, unfiltered=True)
        for label in (document.get(name) or {}).get("detections") or []
        if label.get("index") is not None
        and is_foreign(label, store.sample_id, document["frame_number"])
    }


def labeled_frames(
    sample: fo.Sample | fo.SampleView, field: str, objects: Collection[int]
) -> set[int]:
    """Returns the 0-based frames on which any of some objects has a label."""
    store, labels = Store.of(sample), f"{frame_path(field)}.detections.index"
    query = {**store.frame_query(), labels: {"$in": list(objects)}}
    found = store.dataset._frame_collection.find(query, {"frame_number": 1})
    return {document["frame_number"] - 1 for document in found}


def read_tracks(
    sample: fo.Sample | fo.SampleView,
    field: str,
    *,
    support: tuple[int, int] | None = None,
) -> list[Track]:
    """Reads where objects are, without their masks.

    Any frame-level Detections are tracks as far as they have an ``index`` or an
    ``instance`` (see :class:`fiftyone_regioncap.dataset.objects.ObjectNumbers`).
    Filters of the view that the sample comes from hold. What lies past the end of the
    video is left out.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the tracks, with or without ``frames.`` in front.
        support: (first, last) 0-based frames, inclusive; None means all.

    Returns:
        One track per object, by object id.

    Raises:
        FieldError: When there is no such field, or none of its labels has an index or
            an instance.
    """
    require_tracks(sample._collection, field)
    name = frame_path(field)
    store = Store.of(sample)
    known = object_numbers(store, name)
    metadata = describe(sample).metadata
    height, width = metadata.frame_height, metadata.frame_width
    paths = [
        f"{name}.detections.{key}"
        for key in (*IDENTITY_PATHS, "bounding_box", "confidence")
    ]
    frames: dict[int, list[int]] = {}
    boxes: dict[int, list[tuple[float, float, float, float]]] = {}
    scores: dict[int, list[float]] = {}
    labels: dict[int, str | None] = {}
    instances: dict[int, str | None] = {}
    untracked = 0
    for document in store.frames(paths, support=inside(support, metadata)):
        for label in (document.get(name) or {}).get("detections") or []:
            own = Identity.of(label)
            object_id = known.of(own)
            if object_id is None or not label.get("bounding_box"):
                untracked += 1
                continue
            frame = document["frame_number"] - 1
            seen = frames.setdefault(object_id, [])
            if seen and seen[-1] == frame:
                continue  # one object is once on a frame; the first label counts
            seen.append(frame)
            box = pixel_box(label["bounding_box"], height, width)
            boxes.setdefault(object_id, []).append(box)
            score = label.get("confidence")
            scores.setdefault(object_id, []).append(1.0 if score is None else score)
            labels[object_id] = labels.get(object_id) or label.get("label")
            instances[object_id] = instances.get(object_id) or own.instance
    if untracked and not frames:
        raise FieldError(
            f"the labels of {frames_field(name)!r} have neither an index nor an "
            "instance, so nothing says which are of one object; propagate prompts "
            "first, or set `index`"
        )
    return [
        Track(
            object_id,
            frames=np.asarray(frames[object_id], dtype=np.int64),
            boxes=np.asarray(boxes[object_id], dtype=np.float64),
            scores=np.asarray(scores[object_id], dtype=np.float64),
            label=labels[object_id],
            instance=instances[object_id],
        )
        for object_id in sorted(frames)
    ]


def read_masks(
    sample: fo.Sample | fo.SampleView,
    field: str,
    wanted: Mapping[int, Collection[int]],
) -> Iterator[tuple[int, dict[int, Mask]]]:
    """Reads the masks of some objects on some frames, and loads no others' frames.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the tracks, with or without ``frames.`` in front.
        wanted: Object ids by 0-based frame.

    Yields:
        0-based frames in ascending order, each with bool (H, W) masks by object id;
        objects that have no mask there are left out, and so are frames without any.

    Raises:
        FieldError: When there is no such field, or a mask on disk can't be read.
    """
    require_tracks(sample._collection, field)
    name = frame_path(field)
    store = Store.of(sample)
    known = object_numbers(store, name)
    height, width = frame_size(sample)
    paths = [
        f"{name}.detections.{key}"
        for key in (*IDENTITY_PATHS, "bounding_box", "mask", "mask_path")
    ]
    numbers = [frame + 1 for frame in wanted]
    for document in store.frames(paths, numbers=numbers):
        frame = document["frame_number"] - 1
        masks: dict[int, Mask] = {}
        for label in (document.get(name) or {}).get("detections") or []:
            object_id = known.of(Identity.of(label))
            if object_id is None or object_id not in wanted[frame]:
                continue
            mask = stored_mask(label)
            if mask is not None:
                box = pixel_box(label["bounding_box"], height, width)
                masks[object_id] = paste_mask(mask, box, height, width)
        if masks:
            yield frame, masks


def _mask_bytes(labels: _FrameLabels) -> int:
    return sum(len(label["mask"]) for label in labels.values() if label is not None)


def mask_folder(store: Store, name: str, output_dir: str | Path | None) -> Path:
    """Returns the folder of a sample's masks on disk.

    Args:
        store: Store of the sample.
        name: Name of the field, without ``frames.``.
        output_dir: Folder for masks; None means FiftyOne's folder of the dataset.
    """
    root = (
        Path(fo.config.default_dataset_dir) / store.dataset.slug
        if output_dir is None
        else Path(output_dir)
    )
    return root.expanduser().resolve() / name / str(store.sample_id)
