"""What can be searched of a caption, and where captions come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

from bson import ObjectId

from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.embeddings import ATTRIBUTES, RegionEmbedding
from fiftyone_regioncap.dataset.store import Document, now

T = TypeVar("T")

_TICK = timedelta(milliseconds=1)  # what the database tells times by
_STILL = timedelta(seconds=10)
_LISTS = ("tags", "attributes")
_WORDS = ("caption", "label", "category")


@dataclass(frozen=True)
class Changes(Generic[T]):
    """What a sample that changed holds.

    Attributes:
        sample: its id.
        modified: when it last changed.
        items: all that it holds now.
    """

    sample: ObjectId
    modified: datetime | None
    items: list[T]


def settled(latest: datetime) -> datetime:
    """Where the next reading begins, when the last change that was read was then.

    Changes of the same moment may still come, and are read again with it, until it is
    long past: a job on a whole dataset gives many samples the same time.
    """
    return latest + _TICK if now() - latest > _STILL else latest


@dataclass(frozen=True)
class CaptionText:
    """What can be searched of one caption.

    Attributes:
        id: of its label.
        caption: the full text.
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
    def hash(self) -> int:
        """Of all that is searched, as a signed number of 64 bits that is not 0."""
        parts = "\x1f".join((self.caption, self.label, *self.tags))
        digest = blake2b(parts.encode(), digest_size=8)
        return int.from_bytes(digest.digest(), "big", signed=True) or 1


class Source(Protocol):
    """Captions that know when they changed."""

    def read(self, since: datetime | None) -> Iterator[Changes[CaptionText]]:
        """Captions that have a text, sample by sample.

        Args:
            since: only samples that changed then or later; None for all.
        """

    def sample_ids(self) -> Iterator[ObjectId]:
        """Of all samples."""

    def count_samples(self) -> int:
        """How many samples there are."""


@dataclass(frozen=True)
class FieldSource:
    """The captions of a field; see :class:`Source`.

    Attributes:
        field: that they are in.
    """

    field: CaptionField

    def read(self, since: datetime | None) -> Iterator[Changes[CaptionText]]:
        """Captions sample by sample; see :meth:`Source.read`."""
        query = self.field.changed_since(since)
        for sample, labels in self.field.documents(
            (*_WORDS, *_LISTS), query=query, paths=("last_modified_at",)
        ):
            texts = [CaptionText.of(label) for label in labels if label.get("caption")]
            yield Changes(sample["_id"], sample.get("last_modified_at"), texts)

    def embeddings(
        self, since: datetime | None
    ) -> Iterator[Changes[tuple[str, RegionEmbedding | None]]]:
        """Region embeddings sample by sample; see :class:`~.looks.LookSource`."""
        if not self.field.embedded:
            return
        query = self.field.changed_since(since)
        for sample, labels in self.field.documents(
            tuple(ATTRIBUTES), query=query, paths=("last_modified_at",)
        ):
            found = [(str(own["_id"]), RegionEmbedding.read(own)) for own in labels]
            yield Changes(sample["_id"], sample.get("last_modified_at"), found)

    def sample_ids(self) -> Iterator[ObjectId]:
        """Of all samples."""
        return self.field.sample_ids()

    def count_samples(self) -> int:
        """How many samples there are."""
        return self.field.count_samples()


def _clean(text: object) -> str:
    """The text without lone surrogates, which no index can hold."""
    return "" if text is None else str(text).encode("utf-8", "replace").decode()
