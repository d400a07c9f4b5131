"""Writes captions of tracks, keeps what people reviewed, and reads captions back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import fiftyone as fo
from bson import ObjectId
from pymongo.errors import DocumentTooLarge, OperationFailure

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import Caption, Scored
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding
from fiftyone_regioncap.dataset.fields import (
    require_captions,
    require_output,
    require_tracks,
)
from fiftyone_regioncap.dataset.objects import object_numbers
from fiftyone_regioncap.dataset.ownership import is_numbered, numbered_id
from fiftyone_regioncap.dataset.schema import (
    declare_captions,
    declare_embeddings,
    declare_tracks,
)
from fiftyone_regioncap.dataset.store import (
    Document,
    FrameUpdate,
    Store,
    frame_path,
    is_too_large,
    now,
)

Review: TypeAlias = Literal["unreviewed", "accepted", "edited", "rejected"]
"""What a person said of a caption."""

Key: TypeAlias = tuple[int, tuple[int, int]]
"""Identity of a caption: object id and support."""


@dataclass(frozen=True)
class CaptionRecord:
    """A caption of one track over one window, with all that is kept of it.

    Attributes:
        index: Object id.
        support: (first, last) 0-based frames, inclusive.
        label: Short name of the object; None when there is none.
        caption: Full text; empty when there is an error.
        confidence: Mean token probability in [0, 1].
        min_confidence: Lowest token probability over content words in [0, 1].
        agreement: Agreement of repeated samples in [0, 1].
        instance: Id of the track's ``fo.Instance``.
        tags: Short labels with scores.
        attributes: Attributes such as ``"color:red"``, with scores.
        category: Best name out of the user's list, with its score.
        model: Published name of the weights.
        revision: Revision of the weights.
        prompt: Prompt of the model; None for models without one.
        frames_used: 0-based frames that the model saw.
        visible_fraction: Share of the window's frames where the object is visible.
        mean_area: Mean area as a share of the frame.
        speed: Speed in frame widths per second.
        direction: Direction of motion in words.
        dominant_color: Dominant color in words.
        review: A person's verdict; ``"unreviewed"`` by default.
        source_caption: The model's text, once a person has edited ``caption``.
        error: Reason why there is no caption; None when there is one.
        embedding: Embedding of the region; None when the captioner made none.
    """

    index: int
    support: tuple[int, int]
    label: str | None = None
    caption: str = ""
    confidence: float | None = None
    min_confidence: float | None = None
    agreement: float | None = None
    instance: str | None = None
    tags: tuple[Scored, ...] = field(default=())
    attributes: tuple[Scored, ...] = field(default=())
    category: Scored | None = None
    model: str | None = None
    revision: str | None = None
    prompt: str | None = None
    frames_used: tuple[int, ...] = ()
    visible_fraction: float | None = None
    mean_area: float | None = None
    speed: float | None = None
    direction: str | None = None
    dominant_color: str | None = None
    review: Review = "unreviewed"
    source_caption: str | None = None
    error: str | None = None
    embedding: RegionEmbedding | None = None

    @classmethod
    def of(
        cls,
        caption: Caption,
        index: int,
        support: tuple[int, int],
        *,
        label: str | None = None,
        **facts: Any,
    ) -> CaptionRecord:
        """Makes a record of a captioner's result.

        Args:
            caption: Caption of the window.
            index: Object id.
            support: (first, last) 0-based frames, inclusive.
            label: Label to use where the captioner gave none.
            **facts: The record's other attributes.
        """
        return cls(
            index=index,
            support=support,
            label=caption.label or label,
            caption=caption.text,
            confidence=caption.confidence,
            min_confidence=caption.min_confidence,
            agreement=caption.agreement,
            tags=caption.tags,
            attributes=caption.attributes,
            category=caption.category,
            error=caption.error,
            **facts,
        )

    @property
    def key(self) -> Key:
        """Identity of the caption: object id and support."""
        return self.index, self.support


def write_captions(
    sample: fo.Sample | fo.SampleView,
    field: str,
    records: Iterable[CaptionRecord],
    *,
    tracks_field: str | None = None,
    overwrite: bool = False,
) -> int:
    """Writes captions into a sample-level field of TemporalDetections.

    A caption takes the place of the one with the same object and support; others stay.
    Captions that a person accepted, edited or rejected stay too, also while this runs,
    and so do labels that others made. Writing the same thing twice changes nothing, ids
    included.

    Args:
        sample: Sample of a dataset of videos; a clip's captions go to its video.
        field: Field for the captions; it is declared.
        records: Captions of this sample.
        tracks_field: Field of tracks whose labels get the caption too, on its frames,
            so that the App shows it with the object (see :func:`mirror_captions`).
        overwrite: Whether to replace reviewed captions too.

    Returns:
        Number of records written; the others met a reviewed caption.

    Raises:
        FieldError: When a field has another type, or the captions of the video don't
            fit into one document of the database.
    """
    store = Store.of(sample)
    require_output(field, *filter(None, [tracks_field]))
    declare_captions(store.dataset, field)
    records = list(records)
    if any(record.embedding is not None for record in records):
        declare_embeddings(store.dataset, field)
    new = {record.key: _document(store, field, record) for record in records}
    written = 0

    def merge(there: list[Document]) -> list[Document]:
        nonlocal written
        kept, reviewed = [], set()
        for label in there:
            if caption_is_foreign(store.sample_id, field, label):
                kept.append(label)
            elif _key(label) not in new or (_reviewed(label) and not overwrite):
                kept.append(label)
                reviewed.add(_key(label))
        added = [label for key, label in new.items() if key not in reviewed]
        written = len(added)
        return [*kept, *added]

    _change(store, field, merge)
    if tracks_field is not None:
        touched = {record.index for record in records}
        mirror_captions(sample, field, tracks_field, objects=touched)
    return written


def caption_is_foreign(sample_id: ObjectId, field: str, label: Document) -> bool:
    """Returns whether a caption was made by somebody else, whose it stays."""
    (first, last), index = label["support"], label.get("index")
    return not is_numbered(label, sample_id, field, index, first - 1, last - 1)


def read_captions(
    sample: fo.Sample | fo.SampleView, field: str, *, own: bool = False
) -> list[CaptionRecord]:
    """Reads the captions of a sample, by object and support.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the captions.
        own: Whether to leave out labels that others made.

    Raises:
        FieldError: When there is no such field.
    """
    found = captions_with_owner(sample, field)
    return [record for record, ours in found if ours or not own]


def captions_with_owner(
    sample: fo.Sample | fo.SampleView, field: str
) -> list[tuple[CaptionRecord, bool]]:
    """Reads captions, each with whether this package wrote it; see read_captions."""
    store = Store.of(sample)
    require_captions(store.dataset, field)
    return [
        (read_caption(label), not caption_is_foreign(store.sample_id, field, label))
        for label in _documents(store, field)
    ]


def shown_captions(sample: fo.SampleView, field: str) -> set[Key]:
    """Returns the captions of a sample that its view shows."""
    value = sample[field]
    return {
        (-1 if label.index is None else label.index, (first - 1, last - 1))
        for label in (value.detections if value else ())
        for first, last in [label.support]
    }


def clear_captions(
    sample: fo.Sample | fo.SampleView,
    field: str,
    *,
    keep: Collection[Key] = (),
    tracks_field: str | None = None,
    overwrite: bool = False,
) -> int:
    """Removes captions that a new run doesn't write again, such as of other windows.

    Those that others made stay.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the captions.
        keep: Identities of the captions to keep.
        tracks_field: Field of tracks whose labels lose the caption too.
        overwrite: Whether to remove reviewed captions too.

    Returns:
        Number of captions removed.

    Raises:
        FieldError: When there is no such field.
    """
    store = Store.of(sample)
    require_captions(store.dataset, field)
    gone: set[Key] = set()

    def leave(there: list[Document]) -> list[Document]:
        gone.clear()
        kept = []
        for label in there:
            if (
                _key(label) in keep
                or (_reviewed(label) and not overwrite)
                or caption_is_foreign(store.sample_id, field, label)
            ):
                kept.append(label)
            else:
                gone.add(_key(label))
        return kept

    _change(store, field, leave)
    if gone and tracks_field is not None:
        objects = {index for index, _ in gone}
        mirror_captions(sample, field, tracks_field, objects=objects)
    return len(gone)


OUTDATED = "outdated"
"""Tag of captions whose track was changed since they were made."""


def caption_index(document: Document) -> int:
    """Returns the object id of a caption as it lies in the database; -1 for none."""
    return _key(document)[0]


@dataclass(frozen=True)
class CaptionMove:
    """How captions follow tracks whose numbers change.

    Attributes:
        number: Object id of a caption after the change; None for an object that is
            gone, whose captions go too unless a person has reviewed them.
        outdated: Whether a caption is about a track that was changed.
        before: Instances of the objects before; captions with another one are of
            another track.
        after: Instances of the objects after.
    """

    number: Callable[[Key], int | None]
    outdated: Callable[[Key], bool]
    before: Mapping[int, Document | None]
    after: Mapping[int, Document | None]

    def concerns(self, label: Document) -> bool:
        """Returns whether a caption is about one of these tracks."""
        linked, own = label.get("instance"), self.before.get(caption_index(label))
        return not (linked and own) or linked["_id"] == own["_id"]


def move_captions(
    sample: fo.Sample | fo.SampleView, field: str, move: CaptionMove
) -> tuple[list[tuple[Key, int | None]], int]:
    """Gives captions the numbers that their objects have by now.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the captions.
        move: How they follow.

    Returns:
        The captions that have another number, each as it was with that number, None
        for those that are gone; and how many are tagged outdated.
    """
    store = Store.of(sample)
    moved: list[tuple[Key, int | None]] = []
    tagged = 0

    def change(there: list[Document]) -> list[Document]:
        nonlocal tagged
        moved.clear()
        tagged = 0
        kept: dict[tuple[Key, ObjectId | None], Document] = {}
        for label in there:
            foreign = caption_is_foreign(store.sample_id, field, label)
            if not move.concerns(label):
                kept[_key(label), label["_id"]] = label
                continue
            key, after = _key(label), move.number(_key(label))
            if after is None and not _reviewed(label):
                moved.append((key, None))
                continue
            old = move.outdated(key)
            if after is not None and after != key[0]:
                first, last = key[1]
                label = {**label, "index": after, "instance": move.after.get(after)}
                if not foreign:
                    own = (store.sample_id, field, after, first, last)
                    label["_id"] = numbered_id(0, *own)
                moved.append((key, after))
            if old and OUTDATED not in (label.get("tags") or ()):
                label = {**label, "tags": [*(label.get("tags") or ()), OUTDATED]}
                tagged += 1
            # Those of others may lie beside each other.
            place = (_key(label), label["_id"] if foreign else None)
            if place not in kept or _reviewed(label) > _reviewed(kept[place]):
                kept[place] = label
        return list(kept.values())

    _change(store, field, change)
    return moved, tagged


def mirror_captions(
    sample: fo.Sample | fo.SampleView,
    field: str,
    tracks_field: str,
    *,
    objects: Collection[int] | None = None,
) -> None:
    """Copies captions onto the labels of their tracks, frame by frame.

    A label gets the caption whose window covers its frame; of several, the one that
    begins last; none where there is none, or where it was rejected. What is on the
    labels afterwards depends on the captions alone, so it is safe to repeat. Tracks
    that are read-only get none.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the captions.
        tracks_field: Field of the tracks, with or without ``frames.`` in front.
        objects: Ids of the objects to update; None means all that have captions.

    Raises:
        FieldError: When a field doesn't exist.
    """
    store = Store.of(sample)
    require_captions(store.dataset, field)
    tracks = require_tracks(store.dataset, tracks_field)
    if store.dataset.get_field(tracks).read_only:
        return
    declare_tracks(store.dataset, tracks)
    records = [read_caption(document) for document in _documents(store, field)]
    if objects is None:
        objects = {record.index for record in records}
    name = frame_path(tracks_field)
    numbers = object_numbers(store, name)
    shown = {
        index: [
            record
            for record in records
            if record.index == index
            and record.error is None
            and record.review != "rejected"
        ]
        for index in sorted(objects)
    }
    belongs = {index: numbers.conditions(index) for index in shown}
    updates = _mirror_updates(store, name, shown, belongs)
    store.write_frames(name, updates, under=field)
    store.reload_frames()


def _mirror_updates(
    store: Store,
    name: str,
    shown: Mapping[int, Sequence[CaptionRecord]],
    belongs: Mapping[int, Sequence[Document]],
) -> list[FrameUpdate]:
    """Makes one update per range of frames over which no caption changes.

    Ranges are disjoint, so that each frame is written once, however many objects
    and windows there are, and not at all where it has its captions.

    Args:
        store: Store of the sample.
        name: Name of the frame field of the tracks.
        shown: Captions to show, by object.
        belongs: Conditions on labels of each object, one of which holds.
    """
    edges = {0}
    for records in shown.values():
        for record in records:
            edges |= {record.support[0], record.support[1] + 1}
    starts = sorted(edges)
    labels = f"{name}.detections"
    updates = []
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        query: Document = {
            "_sample_id": store.sample_id,
            "frame_number": {"$gte": start + 1, **({"$lte": stop} if stop else {})},
        }
        values: Document = {}
        filters: list[Mapping[str, Any]] = []
        any_of: list[Document] = []
        for number, (index, records) in enumerate(shown.items()):
            covering = [
                record
                for record in records
                if record.support[0] <= start <= record.support[1]
            ]
            text = covering[-1].caption if covering else None
            values[f"{labels}.$[o{number}].caption"] = text
            any_of += [{**own, "caption": {"$ne": text}} for own in belongs[index]]
            own = [
                {f"o{number}.{key}": value for key, value in condition.items()}
                for condition in belongs[index]
            ]
            filters.append({"$or": own})
        if not filters:
            continue
        query[labels] = {"$elemMatch": {"$or": any_of}}
        values["last_modified_at"] = now()
        updates.append(
            FrameUpdate(query, {"$set": values}, many=True, array_filters=filters)
        )
    return updates


def _documents(store: Store, field: str) -> list[Document]:
    value = store.sample_document(field).get(field) or {}
    return list(value.get("detections") or [])


def _change(
    store: Store, field: str, change: Callable[[list[Document]], list[Document]]
) -> None:
    """Changes the list of captions, again if somebody else changed it meanwhile."""
    while True:
        old = store.sample_document(field).get(field)
        there = list((old or {}).get("detections") or [])
        ordered = sorted(change(there), key=_key)
        if ordered == there and old is not None:
            return
        value = {"_cls": "TemporalDetections", "detections": ordered}
        try:
            if store.write_sample({field: value}, expected={field: old}):
                return
        except (OperationFailure, DocumentTooLarge) as error:
            if not is_too_large(error):
                raise
            raise FieldError(
                f"{len(ordered)} captions of one video don't fit into one document of "
                "MongoDB (16 MB); caption longer windows, or leave region embeddings "
                "out (the captioner's option embeddings=false)"
            ) from error


def _key(document: Document) -> Key:
    first, last = document["support"]
    index = document.get("index")
    return (-1 if index is None else index), (first - 1, last - 1)


def _reviewed(document: Document) -> bool:
    return document.get("review") not in (None, "unreviewed")


def _document(store: Store, field: str, record: CaptionRecord) -> Document:
    first, last = record.support
    instance = record.instance
    return {
        "_cls": "TemporalDetection",
        "_id": numbered_id(0, store.sample_id, field, record.index, first, last),
        "tags": [tag for tag, _ in record.tags],
        "label": record.label,
        "support": [int(first) + 1, int(last) + 1],
        "confidence": _number(record.confidence),
        "index": int(record.index),
        "instance": None
        if instance is None
        else {"_cls": "Instance", "_id": ObjectId(instance)},
        "caption": record.caption,
        "min_confidence": _number(record.min_confidence),
        "agreement": _number(record.agreement),
        "tag_scores": [float(score) for _, score in record.tags],
        "attributes": [attribute for attribute, _ in record.attributes],
        "attribute_scores": [float(score) for _, score in record.attributes],
        "category": record.category[0] if record.category else None,
        "category_score": float(record.category[1]) if record.category else None,
        "model": record.model,
        "revision": record.revision,
        "prompt": record.prompt,
        "frames_used": [int(frame) + 1 for frame in record.frames_used],
        "visible_fraction": _number(record.visible_fraction),
        "mean_area": _number(record.mean_area),
        "speed": _number(record.speed),
        "direction": record.direction,
        "dominant_color": record.dominant_color,
        "review": record.review,
        "source_caption": record.source_caption,
        "error": record.error,
        **(record.embedding.to_document() if record.embedding else {}),
    }


def read_caption(document: Document) -> CaptionRecord:
    """Reads a caption of a video as the database stores it."""
    index, support = _key(document)
    instance = document.get("instance")
    category = document.get("category")
    return CaptionRecord(
        index=index,
        support=support,
        label=document.get("label"),
        caption=document.get("caption") or "",
        confidence=document.get("confidence"),
        min_confidence=document.get("min_confidence"),
        agreement=document.get("agreement"),
        instance=None if instance is None else str(instance["_id"]),
        tags=_scored(document, "tags", "tag_scores"),
        attributes=_scored(document, "attributes", "attribute_scores"),
        category=(category, document.get("category_score") or 0.0)
        if category
        else None,
        model=document.get("model"),
        revision=document.get("revision"),
        prompt=document.get("prompt"),
        frames_used=tuple(frame - 1 for frame in document.get("frames_used") or ()),
        visible_fraction=document.get("visible_fraction"),
        mean_area=document.get("mean_area"),
        speed=document.get("speed"),
        direction=document.get("direction"),
        dominant_color=document.get("dominant_color"),
        review=cast(Review, document.get("review") or "unreviewed"),
        source_caption=document.get("source_caption"),
        error=document.get("error"),
        embedding=RegionEmbedding.read(document),
    )


REGION_ATTRIBUTES = (
    *("label", "tags", "caption", "review", "source_caption"),
    *("caption_confidence", "caption_model", "caption_error"),
    *("caption_tag_scores", "caption_attributes", "caption_attribute_scores"),
    *("caption_category", "caption_category_score"),
)
"""Attributes of a region that :func:`read_region` reads."""


def read_region(document: Document) -> CaptionRecord:
    """Reads the caption of a region of an image, which has no object id: -1."""
    # The label has attributes of the same names, such as its detector's confidence.
    known = [name for name in REGION_ATTRIBUTES if name in document]
    own = {name.removeprefix("caption_"): document[name] for name in known}
    return read_caption({**own, "support": (1, 1), "index": None, "instance": None})


def _scored(document: Document, names: str, scores: str) -> tuple[Scored, ...]:
    """Words with their scores; words that a person added have none, which counts 1."""
    words: Sequence[str] = document.get(names) or ()
    numbers: Sequence[float] = document.get(scores) or ()
    padded = [*numbers, *[1.0] * (len(words) - len(numbers))]
    return tuple(zip(words, padded, strict=False))


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
