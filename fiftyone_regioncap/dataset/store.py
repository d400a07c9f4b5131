"""Reads and writes the documents of one sample in the database directly.

FiftyOne's sample and frame objects are kept in memory once they were read, masks
included, and are saved one attribute at a time. For videos that is too slow and too
big, so this module (and no other) reads and writes the collections themselves.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import fiftyone as fo
import fiftyone.core.clips as foc
import fiftyone.core.frame as fofr
import fiftyone.core.odm as foo
import fiftyone.core.sample as fos
import fiftyone.core.view as fov
from bson import ObjectId
from pymongo import UpdateMany, UpdateOne
from pymongo.errors import (
    BulkWriteError,
    DocumentTooLarge,
    OperationFailure,
    PyMongoError,
)

from fiftyone_regioncap.core.errors import Fenced, FieldError, RegionCapError
from fiftyone_regioncap.core.field_names import BOOKKEEPING, FRAMES_PREFIX
from fiftyone_regioncap.dataset.leases import Lease, lease_of
from fiftyone_regioncap.dataset.locks import server_time
from fiftyone_regioncap.dataset.types import FieldTypes

Document: TypeAlias = dict[str, Any]
"""A document or sub-document as it lies in the database."""

T = TypeVar("T")

FRAMES_PER_QUERY = 128
"""How many frames one query names at most."""

_PLACE = re.compile(r"\.\$\[\w*\]")
"""A place in a list, in the path of an update."""

_ATTEMPTS = 1000

_FENCED = 241
"""MongoDB's code for a value that can't be converted."""

_TOO_LARGE = {10334, 17419, 17420}  # MongoDB's codes for a document over its limit


def frame_path(field: str) -> str:
    """Returns the field's name on its frame document: without ``frames.``."""
    return field.removeprefix(FRAMES_PREFIX)


def stable_id(*parts: object) -> ObjectId:
    """Returns an id made from what it names, the same for every writing."""
    digest = sha256("\x1f".join(map(str, parts)).encode())
    return ObjectId(digest.digest()[:12])


def now() -> datetime:
    """Returns the time as FiftyOne stores it: UTC without a zone, in milliseconds."""
    time = datetime.now(timezone.utc).replace(tzinfo=None)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def is_too_large(error: Exception) -> bool:
    """Returns whether a document was over the limit, before or after merging."""
    if isinstance(error, BulkWriteError):
        return any(item["code"] in _TOO_LARGE for item in error.details["writeErrors"])
    if isinstance(error, OperationFailure):
        return error.code in _TOO_LARGE
    return isinstance(error, DocumentTooLarge)


def reload_sample(dataset: fo.Dataset, sample_id: ObjectId | str) -> None:
    """Makes a sample's object in memory, if there is one, show what was written.

    FiftyOne's functions for several samples iterate its table of all samples in memory,
    which fails while another thread loads one; this looks up the one by its id.
    """
    fos.Sample._reload_doc(dataset._sample_collection_name, sample_id)


def undisturbed(action: Callable[[], T]) -> T:
    """Does something to a dataset, again where other threads have disturbed it.

    FiftyOne's functions on whole datasets iterate its tables of all samples and frames
    in memory, which fails while another thread loads one.

    Args:
        action: What to do; it can be repeated.
    """
    for _ in range(_ATTEMPTS):
        try:
            return action()
        except RuntimeError as error:
            if "changed size during iteration" not in str(error):
                raise
            time.sleep(0.001)  # so that the other thread gets on
    return action()


def absent_fields(dataset: fo.Dataset, fields: Sequence[str]) -> list[str]:
    """Returns which of some fields the database has no longer, or not yet.

    Args:
        dataset: The dataset; what it knows in memory doesn't count.
        fields: Names of fields, with ``frames.`` in front for those of frames.
    """
    known = _stored_fields(dataset)
    return [field for field in fields if field not in known]


def _stored_fields(dataset: fo.Dataset) -> dict[str, bool]:
    """Returns the fields in the database by name, and whether they are read-only."""
    kinds = {
        f"{kind}_fields.{key}": 1
        for kind in ("sample", "frame")
        for key in ("name", "read_only")
    }
    found = foo.get_db_conn().datasets.find_one({"_id": dataset._doc.id}, kinds) or {}
    return {
        prefix + item["name"]: bool(item.get("read_only"))
        for prefix, kind in (("", "sample_fields"), (FRAMES_PREFIX, "frame_fields"))
        for item in found.get(kind) or ()
    }


def read_only(field: str) -> FieldError:
    """Returns the error of a write to a field that is read-only.

    Args:
        field: Name of the field, with ``frames.`` in front for one of frames.
    """
    return FieldError(
        f"{field!r} is read-only; give the result another field, or allow changes "
        f"with dataset.get_field({field!r}).read_only = False and .save()"
    )


def require_stored(dataset: fo.Dataset, fields: Sequence[str]) -> None:
    """Makes sure that fields can still be written.

    Documents with fields that are in no schema can't be loaded by FiftyOne.

    Args:
        dataset: The dataset; what it knows in memory doesn't count.
        fields: Names of fields, with ``frames.`` in front for those of frames.

    Raises:
        FieldError: When one was deleted, or made read-only by somebody.
    """
    known = _stored_fields(dataset)
    absent = [field for field in fields if field not in known]
    if absent:
        raise FieldError(
            f"{', '.join(absent)} was deleted while it was written to; do it again"
        )
    # What jobs keep for themselves is read-only for everybody else.
    fixed = [field for field in fields if known[field]]
    fixed = [field for field in fixed if not field.endswith(BOOKKEEPING)]
    if fixed:
        raise read_only(fixed[0])


def refresh_schema(dataset: fo.Dataset) -> None:
    """Makes a dataset know the fields that other processes have added or deleted."""
    kinds = {"sample_fields.name": 1, "frame_fields.name": 1}
    found = foo.get_db_conn().datasets.find_one({"_id": dataset._doc.id}, kinds)
    if found is None:
        raise FieldError("the dataset was deleted")
    here = dataset._doc
    for kind in ("sample_fields", "frame_fields"):
        there = [item["name"] for item in found.get(kind) or ()]
        if there != [item.name for item in getattr(here, kind)]:
            undisturbed(dataset.reload)
            return


@dataclass(frozen=True)
class FrameUpdate:
    """An update of frame documents.

    Attributes:
        query: Which documents.
        change: An update, or the stages of a pipeline, which begins with ``$set``.
        many: Whether all documents are updated, in place of one.
        upsert: Whether one is made where there is none; for pipelines.
        array_filters: MongoDB's filters for each ``$[name]`` in the paths.
    """

    query: Document
    change: Document | list[Document]
    many: bool = False
    upsert: bool = False
    array_filters: Sequence[Mapping[str, Any]] | None = None

    def operation(self, lease: Lease | None) -> UpdateOne | UpdateMany:
        """Returns MongoDB's operation, which the server refuses without the lease."""
        query, change = self.query, self.change
        if lease is not None and isinstance(change, list):
            # An error, as what matches nothing would be inserted.
            number = {"$convert": {"input": "fenced", "to": "int"}}
            holds = {"$lt": ["$$NOW", lease.until]}
            checked = {"$cond": [holds, "$frame_number", number]}
            first, *rest = change  # a stage of its own takes the server longer
            change = [{"$set": {"frame_number": checked, **first["$set"]}}, *rest]
        elif lease is not None:
            query = {**query, **_holds(lease)}
        kind = UpdateMany if self.many else UpdateOne
        filters = None if self.array_filters is None else list(self.array_filters)
        return kind(query, change, upsert=self.upsert, array_filters=filters)


def _holds(lease: Lease) -> Document:
    return {"$expr": {"$lt": ["$$NOW", lease.until]}}


@dataclass(frozen=True)
class SampleUpdate:
    """An update of one sample's document.

    Attributes:
        sample_id: Id of the sample.
        values: Values by path.
        absent: Paths that are removed.
        array_filters: MongoDB's filters for each ``$[name]`` in the paths.
        query: What else the document has to fulfil to be updated.
    """

    sample_id: ObjectId
    values: Document
    absent: Collection[str] = ()
    array_filters: Sequence[Mapping[str, Any]] | None = None
    query: Document = field(default_factory=dict)

    def operation(self) -> UpdateOne:
        """Returns MongoDB's operation."""
        change: Document = {"$set": {**self.values, "last_modified_at": now()}}
        if self.absent:
            change["$unset"] = dict.fromkeys(self.absent, "")
        filters = None if self.array_filters is None else list(self.array_filters)
        query = {"_id": self.sample_id, **self.query}
        return UpdateOne(query, change, array_filters=filters)


def write_samples(
    dataset: fo.Dataset, field: str, updates: Sequence[SampleUpdate]
) -> None:
    """Changes labels of one field of many samples, in one trip to the database.

    Samples that were deleted meanwhile are passed over.

    Args:
        dataset: The dataset of the samples.
        field: Field of samples that the updates change.
        updates: The updates; their order doesn't matter.

    Raises:
        FieldError: When a value has another type than its attribute, or the field was
            deleted meanwhile or is read-only.
    """
    if not updates:
        return
    check = FieldTypes(dataset).check
    for update in updates:
        for path, value in update.values.items():
            check(_PLACE.sub("", path), value)
    require_stored(dataset, [field])
    operations = [update.operation() for update in updates]
    dataset._sample_collection.bulk_write(operations, ordered=False)
    for update in updates:
        reload_sample(dataset, update.sample_id)


@dataclass(frozen=True)
class Store:
    """Access to the documents of one sample.

    Attributes:
        sample: The caller's object: a sample, or one of a view.
        dataset: Dataset that owns the sample; for clips, the videos' dataset.
        sample_id: Id of the sample; for clips, that of their video.
        support: (first, last) 0-based frames of a clip, inclusive; None for others.
    """

    sample: fo.Sample
    dataset: fo.Dataset
    sample_id: ObjectId
    support: tuple[int, int] | None

    @classmethod
    def of(cls, sample: fo.Sample | fo.SampleView) -> Store:
        """Finds the documents of a sample.

        Raises:
            ValueError: When the sample is not in a dataset.
        """
        if not sample._in_db:
            raise ValueError(
                f"{sample.filepath} is in no dataset; call dataset.add_sample() first"
            )
        if isinstance(sample, foc.ClipView):
            first, last = sample.support
            return cls(
                sample,
                sample._view._root_dataset,
                ObjectId(sample.sample_id),
                (first - 1, last - 1),
            )
        return cls(sample, sample._dataset, ObjectId(sample.id), None)

    def frames(
        self,
        paths: Sequence[str],
        *,
        support: tuple[int, int] | None = None,
        numbers: Collection[int] | None = None,
        unfiltered: bool = False,
    ) -> Iterator[Document]:
        """Reads some paths of the frame documents, in the order of frame numbers.

        Filters of the view that the sample comes from hold here too.

        Args:
            paths: Paths to load, such as ``"tracks.detections.index"``.
            support: (first, last) 0-based frames, inclusive; None means all.
            numbers: 1-based frame numbers to read; None means all.
            unfiltered: Whether to ignore the view's filters; off by default.

        Yields:
            Documents with ``frame_number`` (1-based) and those of the paths that exist.
        """
        if numbers is not None:
            remaining = iter(sorted(numbers))
            while chunk := list(islice(remaining, FRAMES_PER_QUERY)):
                yield from self._find(
                    paths, self.frame_query(support, chunk), unfiltered
                )
        else:
            yield from self._find(paths, self.frame_query(support), unfiltered)

    def frame_query(
        self,
        support: tuple[int, int] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> Document:
        """Returns a query for the sample's frame documents.

        Args:
            support: (first, last) 0-based frames, inclusive; None means all.
            numbers: 1-based frame numbers; None means all.
        """
        query: Document = {"_sample_id": self.sample_id}
        spans = [span for span in (support, self.support) if span is not None]
        if spans:
            query["frame_number"] = {
                "$gte": max(first for first, _ in spans) + 1,
                "$lte": min(last for _, last in spans) + 1,
            }
        if numbers is not None:
            query.setdefault("frame_number", {})["$in"] = list(numbers)
        return query

    def _find(
        self, paths: Sequence[str], query: Document, unfiltered: bool
    ) -> Iterator[Document]:
        projection = {"_id": 0, "frame_number": 1, **dict.fromkeys(paths, 1)}
        found = self.dataset._frame_collection.find
        if unfiltered or not self._filters_frames():
            yield from found(query, projection).sort("frame_number", 1)
            return
        # A view joins frames to their sample, for which MongoDB allows 16 MB at once.
        selected = fov.make_optimized_select_view(self.sample._view, self.sample.id)
        numbers = found(query, {"frame_number": 1}).sort("frame_number", 1)
        present = (document["frame_number"] for document in numbers)
        while chunk := list(islice(present, FRAMES_PER_QUERY)):
            pipeline = selected._pipeline(
                frames_only=True, support=[chunk[0], chunk[-1]]
            )
            stages = [
                {"$match": {"frame_number": {"$in": chunk}}},
                {"$sort": {"frame_number": 1}},
                {"$project": projection},
            ]
            yield from foo.aggregate(
                selected._dataset._sample_collection, [*pipeline, *stages]
            )

    def _filters_frames(self) -> bool:
        """Returns whether the sample's view filters or changes its frames."""
        frames = self.sample.frames
        return isinstance(frames, fofr.FramesView) and frames._needs_frames

    def frame_bytes(self) -> int:
        """Sums the sizes of the sample's frame documents, in bytes."""
        size = {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}
        pipeline = [{"$match": {"_sample_id": self.sample_id}}, {"$group": size}]
        found = list(self.dataset._frame_collection.aggregate(pipeline))
        return int(found[0]["bytes"]) if found else 0

    def count_frames(self, after: int) -> int:
        """Counts the sample's frame documents after a 1-based frame number."""
        query = {"_sample_id": self.sample_id, "frame_number": {"$gt": after}}
        return self.dataset._frame_collection.count_documents(query)

    def frames_state(self) -> str:
        """Describes when the sample's frames last changed, and how many there are.

        FiftyOne keeps the time of a change of a frame with the frame alone.
        """
        newest = {"$max": "$last_modified_at"}
        group = {"_id": None, "count": {"$sum": 1}, "newest": newest}
        pipeline = [{"$match": self.frame_query()}, {"$group": group}]
        for found in self.dataset._frame_collection.aggregate(pipeline):
            return f"{found['count']} frames, {found['newest']}"
        return "0 frames"

    def sample_document(self, *paths: str) -> Document:
        """Reads some paths of the sample's own document, those that exist."""
        projection = {"_id": 0, **dict.fromkeys(paths, 1)}
        found = self.dataset._sample_collection.find_one(
            {"_id": self.sample_id}, projection
        )
        return found or {}

    def frame_update(
        self, number: int, field: str, value: Any, *, upsert: bool = True
    ) -> FrameUpdate:
        """Makes an update that sets a field of one frame.

        Where the field holds that value already, nothing is written.

        Args:
            number: 1-based frame number.
            field: Name of the field, without ``frames.``.
            value: MongoDB's expression of its value; ``{"$literal": value}`` for what
                comes from outside, as text may begin with ``$``.
            upsert: Whether a frame without a document gets one.
        """
        time, before = now(), f"_{field}_before"
        change = {
            "_dataset_id": self.dataset._doc.id,
            before: f"${field}",
            field: value,
            "created_at": {"$ifNull": ["$created_at", time]},
        }
        same = {"$eq": [f"${field}", f"${before}"]}
        changed = {"$cond": [same, "$last_modified_at", time]}
        stages = [{"$set": change}, {"$set": {"last_modified_at": changed}}]
        query = {"_sample_id": self.sample_id, "frame_number": number}
        return FrameUpdate(query, [*stages, {"$unset": before}], upsert=upsert)

    def write_frames(
        self,
        field: str,
        updates: Sequence[FrameUpdate],
        values: Iterable[Document] = (),
        *,
        under: str | None = None,
    ) -> None:
        """Runs updates of the frame documents; their order doesn't matter.

        Args:
            field: Field that they write, without ``frames.``.
            updates: The updates.
            values: The values of the field or its labels that they bring.
            under: Field whose lease is needed; None for the same one.

        Raises:
            Fenced: When another process works on the sample by now.
            FieldError: When a value has another type than its field, or the field or
                the sample was deleted meanwhile.
        """
        if not updates:
            return
        lease = lease_of(self.sample_id, under or field)
        path = f"{FRAMES_PREFIX}{field}"
        check = FieldTypes(self.dataset).check
        for value in values:
            check(path, value)
        self.recheck(path)
        operations = [update.operation(lease) for update in updates]
        try:
            self.dataset._frame_collection.bulk_write(operations, ordered=False)
        except BulkWriteError as error:
            if _FENCED in {item["code"] for item in error.details["writeErrors"]}:
                raise Fenced(f"another process works on sample {self.sample_id}") from (
                    error
                )
            raise

    def write_sample(
        self,
        values: Mapping[str, Any],
        array_filters: Sequence[Mapping[str, Any]] | None = None,
        *,
        extra: Document | None = None,
        expected: Document | None = None,
        under: str | None = None,
    ) -> bool:
        """Sets fields of the sample's document and of its object in memory.

        Args:
            values: Values by path.
            array_filters: MongoDB's filters for each ``$[name]`` in the paths.
            extra: Further operators of the update, such as ``$addToSet``.
            expected: Values of fields as they were read; where somebody has changed one
                since, nothing is written.
            under: Field whose lease is needed; None for that of the values.

        Returns:
            Whether the values were written.

        Raises:
            Fenced: When another process works on the sample by now.
            FieldError: When a value has another type than its field, or a field or the
                sample was deleted meanwhile.
        """
        types = FieldTypes(self.dataset)
        for path, value in values.items():
            types.check(_PLACE.sub("", path), value)
        paths = [*values, *(path for one in (extra or {}).values() for path in one)]
        roots = sorted({path.split(".")[0] for path in paths})
        require_stored(self.dataset, roots)
        query: Document = {"_id": self.sample_id}
        lease = lease_of(self.sample_id, under or roots[0])
        if lease is not None:
            query.update(_holds(lease))
        query |= {name: {"$eq": value} for name, value in (expected or {}).items()}
        result = self.dataset._sample_collection.update_one(
            query,
            {"$set": {**values, "last_modified_at": now()}, **(extra or {})},
            array_filters=array_filters,
        )
        if not result.matched_count:
            self._require_sample()
            if lease is not None and server_time() >= lease.until:
                raise Fenced(f"another process works on sample {self.sample_id}")
            return False
        refresh = partial(reload_sample, self.dataset, self.sample_id)
        if lease is not None and under is not None:
            lease.refresh = refresh  # what jobs keep beside labels, once they are done
        else:
            refresh()
        return True

    @contextmanager
    def restored_on_error(
        self, frame_field: str, *sample_fields: str
    ) -> Iterator[None]:
        """Puts fields back as they were if the block fails, files of masks included.

        Their values are held in memory meanwhile. What can't be put back, because the
        database is gone, a field was deleted or another process works on the sample,
        stays as the block left it.

        Args:
            frame_field: Field of frames with labels, without ``frames.``.
            *sample_fields: Fields of the sample.
        """
        frames = self.dataset._frame_collection
        query = {"_sample_id": self.sample_id}
        labels = list(frames.find(query, {frame_field: 1}))
        paths = {
            Path(label["mask_path"])
            for document in labels
            for label in (document.get(frame_field) or {}).get("detections") or ()
            if label.get("mask_path")
        }
        files = {path: path.read_bytes() for path in paths if path.is_file()}
        values = self.sample_document(*sample_fields)
        try:
            yield
        except BaseException:
            with suppress(PyMongoError, OSError, RegionCapError):
                new = {**query, "_id": {"$nin": [one["_id"] for one in labels]}}
                unset = {"$unset": {frame_field: ""}}
                changes = [FrameUpdate(new, unset, many=True)]
                for old in labels:
                    there = old.get(frame_field)
                    change = unset if there is None else {"$set": {frame_field: there}}
                    changes.append(FrameUpdate({"_id": old["_id"]}, change))
                self.write_frames(frame_field, changes)
                self.write_sample(
                    {name: values.get(name) for name in sample_fields},
                    under=frame_field,
                )
                for path, content in files.items():
                    path.write_bytes(content)
                self.reload_frames()
            raise

    def recheck(self, field: str) -> None:
        """Makes sure that a field and the sample are still there before a write.

        Args:
            field: Name of the field, with ``frames.`` in front for a field of frames.

        Raises:
            FieldError: When the field, the sample or the dataset was deleted meanwhile,
                or the field is read-only.
        """
        require_stored(self.dataset, [field])
        self._require_sample()

    def _require_sample(self) -> None:
        found = self.dataset._sample_collection.find_one
        if found({"_id": self.sample_id}, {"_id": 1}) is None:
            raise FieldError("the sample was deleted while the job ran")

    def reload_frames(self) -> None:
        """Makes frame objects in memory show what was written past them."""
        name, ids = self.dataset._frame_collection_name, [str(self.sample_id)]
        undisturbed(self.sample.frames.reload)
        undisturbed(lambda: fofr.Frame._reload_docs(name, sample_ids=ids))
