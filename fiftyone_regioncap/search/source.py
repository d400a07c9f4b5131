"""The searchable texts of captions, and sources that captions are read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Generic, TypeVar

from bson import ObjectId

from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.embeddings import ATTRIBUTES, RegionEmbedding
from fiftyone_regioncap.dataset.store import Document, now

T = TypeVar("T")

_TICK = timedelta(milliseconds=1)  # resolution of the database's times
_SETTLED = timedelta(seconds=30)
_LISTS = ("tags", "attributes")
_WORDS = ("caption", "label", "category")


@dataclass(frozen=True)
class Changes(Generic[T]):
    """The content of a sample that changed.

    Attributes:
        sample: Id of the sample.
        modified: When it last changed.
        items: Everything that it holds now.
    """

    sample: ObjectId
    modified: datetime | None
    items: list[T]


def next_checkpoint(latest: datetime) -> datetime:
    """Returns the time that the next reading begins at.

    Changes carry the time at which FiftyOne prepared them. They may reach the database
    later, after others that were prepared since, and the clock of another machine may
    be ahead, so that what is recent is read again.

    Args:
        latest: Time of the last change that was read.
    """
    return min(latest + _TICK, now() - _SETTLED)


@dataclass(frozen=True)
class CaptionText:
    """The searchable texts of one caption.

    Attributes:
        id: Id of the label.
        caption: The full text.
        label: The short name; empty when there is none.
        tags: Tags, attributes and the category.
    """

    id: str
    caption: str
    label: str
    tags: tuple[str, ...]

    @classmethod
    def of(cls, label: Document) -> CaptionText:
        """Reads the texts of a label."""
        words = [label.get("category")]
        words += [word for key in _LISTS for word in label.get(key) or ()]
        return cls(
            id=str(label["_id"]),
            caption=_encodable(label.get("caption")),
            label=_encodable(label.get("label")),
            tags=tuple(_encodable(word).replace(":", " ") for word in words if word),
        )

    @property
    def hash(self) -> int:
        """Hash of all texts, as a signed number of 64 bits that is not 0."""
        return hash_of("\x1f".join((self.caption, self.label, *self.tags)).encode())


def hash_of(data: bytes) -> int:
    """Hashes bytes to a signed number of 64 bits that is not 0."""
    digest = blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1


@dataclass(frozen=True)
class FieldSource:
    """Captions and region embeddings of a field, which know when they changed.

    Attributes:
        field: The field.
    """

    field: CaptionField

    def read(self, since: datetime | None) -> Iterator[Changes[CaptionText]]:
        """Reads captions that have a text, sample by sample.

        Args:
            since: Only samples that changed at this time or later; None for all.
        """
        for change in self._changes((*_WORDS, *_LISTS), since):
            texts = [CaptionText.of(own) for own in change.items if own.get("caption")]
            yield Changes(change.sample, change.modified, texts)

    def embeddings(
        self, since: datetime | None
    ) -> Iterator[Changes[tuple[str, RegionEmbedding | None]]]:
        """Reads label ids and their region embeddings, sample by sample.

        Args:
            since: Only samples that changed at this time or later; None for all.
        """
        if since is None and not self.field.embedded:
            return
        for change in self._changes(tuple(ATTRIBUTES), since):
            found = [(str(o["_id"]), RegionEmbedding.read(o)) for o in change.items]
            yield Changes(change.sample, change.modified, found)

    def sample_ids(self) -> Iterator[ObjectId]:
        """Iterates over the ids of all samples."""
        return self.field.sample_ids()

    def count_samples(self) -> int:
        """Counts the samples."""
        return self.field.count_samples()

    def _changes(
        self, attributes: tuple[str, ...], since: datetime | None
    ) -> Iterator[Changes[Document]]:
        query = self.field.changed_since(since)
        paths = ("last_modified_at",)
        for sample, labels in self.field.documents(
            attributes, query=query, paths=paths
        ):
            yield Changes(sample["_id"], sample.get("last_modified_at"), labels)


def _encodable(text: object) -> str:
    """Returns the text without lone surrogates, which no index can hold."""
    return "" if text is None else str(text).encode("utf-8", "replace").decode()
