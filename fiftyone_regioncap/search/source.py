"""The captions of a dataset, as they lie in the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

import fiftyone as fo
import fiftyone.core.media as fom
from bson import ObjectId

from fiftyone_regioncap.labels import fields
from fiftyone_regioncap.labels.geometry import labels_of
from fiftyone_regioncap.labels.store import Document

_LISTS = ("tags", "attributes")
_WORDS = ("caption", "label", "category")
_SAMPLES_AT_ONCE = 1000


def caption_fields(dataset: fo.Dataset) -> list[str]:
    """Fields that can have captions: those of tracks, or regions that have some."""
    if dataset.media_type != fom.IMAGE:
        return fields.caption_fields(dataset)
    sources = [
        CaptionSource.of(dataset, name) for name in fields.region_fields(dataset)
    ]
    return [s.field for s in sources if dataset.has_field(f"{s.labels}.caption")]


@dataclass(frozen=True)
class CaptionText:
    """What can be searched of one caption.

    Attributes:
        id: of its label.
        caption: the full text; empty when there is none.
        label: the short name; empty when there is none.
        tags: tags, attributes and the category.
    """

    id: str
    caption: str
    label: str
    tags: tuple[str, ...]

    @classmethod
    def of(cls, label: Document) -> CaptionText:
        """What a label says."""
        words = [
            label.get("category"),
            *(word for key in _LISTS for word in label.get(key) or ()),
        ]
        return cls(
            id=str(label["_id"]),
            caption=_clean(label.get("caption")),
            label=_clean(label.get("label")),
            tags=tuple(_clean(word).replace(":", " ") for word in words if word),
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said; the name of an object alone is no caption."""
        return not self.caption

    @property
    def hash(self) -> int:
        """Of all that is searched, as a signed number of 64 bits that is not 0."""
        parts = "\x1f".join((self.caption, self.label, *self.tags))
        digest = blake2b(parts.encode(), digest_size=8)
        return int.from_bytes(digest.digest(), "big", signed=True) or 1


@dataclass(frozen=True)
class CaptionSource:
    """The captions of one field.

    Attributes:
        dataset: that has them.
        field: of TemporalDetections on videos, of regions on images.
        labels: path of the labels in the sample's document.
    """

    dataset: fo.Dataset
    field: str
    labels: str

    @classmethod
    def of(cls, dataset: fo.Dataset, field: str) -> CaptionSource:
        """Finds out what kind of field it is.

        Raises:
            FieldError: when there is no such field, or it can't have captions.
        """
        image = dataset.media_type == fom.IMAGE
        (fields.require_regions if image else fields.require_captions)(dataset, field)
        kind = dataset.get_field(field).document_type
        inner = getattr(kind, "_LABEL_LIST_FIELD", None)
        return cls(dataset, field, f"{field}.{inner}" if inner else field)

    def read(
        self, since: datetime | None = None, samples: Sequence[ObjectId] | None = None
    ) -> Iterator[tuple[ObjectId, datetime | None, list[CaptionText]]]:
        """Captions sample by sample.

        Args:
            since: only samples that changed then or later.
            samples: only these.

        Yields:
            the sample's id, when it last changed, and its captions.
        """
        query: Document = {}
        if since is not None:
            query["last_modified_at"] = {"$gte": since}
        if samples is not None:
            query["_id"] = {"$in": list(samples)}
        paths = [f"{self.labels}.{key}" for key in ("_id", *_WORDS, *_LISTS)]
        projection = {"last_modified_at": 1, **dict.fromkeys(paths, 1)}
        found = self.dataset._sample_collection.find(
            query, projection, batch_size=_SAMPLES_AT_ONCE
        )
        for document in found:
            texts = [
                CaptionText.of(label) for label in labels_of(document.get(self.field))
            ]
            yield (
                document["_id"],
                document.get("last_modified_at"),
                [text for text in texts if not text.is_empty],
            )

    def sample_ids(self) -> Iterator[ObjectId]:
        """Of all samples."""
        for document in self.dataset._sample_collection.find({}, {"_id": 1}):
            yield document["_id"]

    def count_samples(self) -> int:
        """How many samples there are."""
        return self.dataset._sample_collection.count_documents({})


def _clean(text: object) -> str:
    """The text without lone surrogates, which no index can hold."""
    return "" if text is None else str(text).encode("utf-8", "replace").decode()
