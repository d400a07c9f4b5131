"""What can be searched of a caption, and where captions come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Protocol

from bson import ObjectId

from fiftyone_regioncap.caption_fields import CaptionField
from fiftyone_regioncap.labels.store import Document

_LISTS = ("tags", "attributes")
_WORDS = ("caption", "label", "category")


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

    def read(
        self, since: datetime | None
    ) -> Iterator[tuple[ObjectId, datetime | None, list[CaptionText]]]:
        """Captions sample by sample.

        Args:
            since: only samples that changed then or later; None for all.

        Yields:
            the sample's id, when it last changed, and its captions that have a text.
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

    def read(
        self, since: datetime | None
    ) -> Iterator[tuple[ObjectId, datetime | None, list[CaptionText]]]:
        """Captions sample by sample; see :meth:`Source.read`."""
        query = self.field.changed_since(since)
        for sample, labels in self.field.documents(
            (*_WORDS, *_LISTS), query=query, paths=("last_modified_at",)
        ):
            texts = [CaptionText.of(label) for label in labels if label.get("caption")]
            yield sample["_id"], sample.get("last_modified_at"), texts

    def sample_ids(self) -> Iterator[ObjectId]:
        """Of all samples."""
        return self.field.sample_ids()

    def count_samples(self) -> int:
        """How many samples there are."""
        return self.field.count_samples()


def _clean(text: object) -> str:
    """The text without lone surrogates, which no index can hold."""
    return "" if text is None else str(text).encode("utf-8", "replace").decode()
