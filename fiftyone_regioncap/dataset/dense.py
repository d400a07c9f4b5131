"""Writes captioned parts of whole images, and similarity maps of texts.

Images hold them in a field of the sample, videos in a field of some frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import fiftyone as fo
import fiftyone.core.media as fom
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Caption, Mask, crop_mask
from fiftyone_regioncap.dataset.fields import require_output
from fiftyone_regioncap.dataset.geometry import inline_mask, relative_box
from fiftyone_regioncap.dataset.ownership import is_numbered, numbered_id
from fiftyone_regioncap.dataset.schema import declare_dense
from fiftyone_regioncap.dataset.store import (
    Document,
    FrameUpdate,
    Store,
    frame_path,
    now,
)

Support: TypeAlias = tuple[int, int]
"""(first, last) 0-based frames, inclusive."""


@dataclass(frozen=True)
class CaptionedPart:
    """A captioned part of an image or frame.

    Attributes:
        mask: Mask of the part, bool (H, W).
        caption: Caption of the part.
    """

    mask: Mask
    caption: Caption


def part_is_foreign(
    name: str, frames: bool
) -> Callable[[Document, ObjectId, int], bool]:
    """Detects parts and maps of others; see :func:`.ownership.refuse_foreign_labels`.

    Args:
        name: Name of the field, without ``frames.``.
        frames: Whether it is a field of frames.
    """

    def is_foreign(label: Document, sample_id: ObjectId, number: int) -> bool:
        return not is_numbered(label, sample_id, name, number - 1 if frames else 0)

    return is_foreign


class DenseWriter:
    """Writes the parts and the map of an image, or of frames of a video.

    Each write goes to the database at once, and writing the same thing twice changes
    nothing, ids included. Use it as a context manager, so that frames in memory show
    what was written.
    """

    def __init__(
        self, sample: fo.Sample | fo.SampleView, field: str, heatmap: str | None = None
    ) -> None:
        """Declares the fields; writes nothing yet.

        Args:
            sample: Image or video in a dataset.
            field: Field for the parts, with or without ``frames.`` in front.
            heatmap: Field for the maps, likewise; None for none.

        Raises:
            FieldError: When a name is none, both are one, or a field exists with
                another type.
        """
        self._store = Store.of(sample)
        self._field = frame_path(require_output(field))
        self._heatmap = (
            None if heatmap is None else frame_path(require_output(heatmap, field))
        )
        self._video = sample.media_type == fom.VIDEO
        declare_dense(
            self._store.dataset, self._field, self._heatmap, frames=self._video
        )

    def __enter__(self) -> DenseWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._video:
            self._store.reload_frames()

    def captioned(self) -> set[int]:
        """Returns 0-based frames that have parts; 0 stands for an image."""
        return {
            frame
            for frame, document in self._documents(f"{self._field}._cls")
            if document.get(self._field)
        }

    def mapped(self, query: str) -> set[int]:
        """Returns 0-based frames with the map of a query; 0 stands for an image."""
        name = self._heatmap
        assert name is not None, "the writer was made without a heat map"
        return {
            frame
            for frame, document in self._documents(f"{name}.query")
            if (document.get(name) or {}).get("query") == query
        }

    def errors(self) -> tuple[list[str], int]:
        """Returns the errors of captions, and how many captions there are."""
        path = f"{self._field}.detections.caption_error"
        found = [
            label.get("caption_error")
            for _, document in self._documents(path)
            for label in (document.get(self._field) or {}).get("detections") or []
        ]
        return [error for error in found if error], len(found)

    def clear(self, supports: Sequence[Support] | None = None) -> None:
        """Removes parts and maps.

        Args:
            supports: Ranges of a video; None means all of it.
        """
        for support in [None] if supports is None else supports:
            self._unset([self._field, self._heatmap], support, {})

    def clear_other_maps(self, query: str) -> None:
        """Removes a video's maps of other queries, so that all its maps mean the same.

        An image's only map is replaced by the next one.
        """
        if self._heatmap is not None:
            other = {f"{self._heatmap}.query": {"$ne": query}}
            self._unset([self._heatmap], None, other)

    def write_parts(
        self, frame: int, parts: Sequence[CaptionedPart], *, model: str
    ) -> None:
        """Writes the parts of an image or frame, and replaces earlier ones.

        Args:
            frame: Frame number, 0-based; 0 for an image.
            parts: Parts in the order of drawing; empty ones are left out.
            model: Published name of the weights.
        """
        labels = [
            label
            for number, part in enumerate(parts)
            if (label := self._part(frame, number, part, model)) is not None
        ]
        self._write(frame, self._field, {"_cls": "Detections", "detections": labels})

    def write_map(self, frame: int, values: NDArray[np.float32], query: str) -> None:
        """Writes the map of a text on an image or frame, and replaces an earlier one.

        Args:
            frame: Frame number, 0-based; 0 for an image.
            values: Cosines in [-1, 1], (h, w) of any resolution over the whole image;
                NaN, where nothing is known, is kept as 0, which the App
                doesn't draw.
            query: Text that the map is of.
        """
        assert self._heatmap is not None, "the writer was made without a heat map"
        label = fo.Heatmap(
            map=np.nan_to_num(values.astype(np.float32)), range=[-1, 1], query=query
        )
        document = dict(label.to_mongo().to_dict())
        document["_id"] = numbered_id(0, self._store.sample_id, self._heatmap, frame)
        self._write(frame, self._heatmap, document)

    def _part(
        self, frame: int, number: int, part: CaptionedPart, model: str
    ) -> Document | None:
        cropped = crop_mask(part.mask)
        if cropped is None:
            return None
        box, mask = cropped
        caption = part.caption
        return {
            "_cls": "Detection",
            "_id": numbered_id(number, self._store.sample_id, self._field, frame),
            "attributes": {},
            "tags": [],
            "label": caption.label,
            "bounding_box": relative_box(box, *part.mask.shape),
            "mask": inline_mask(mask),
            "confidence": caption.confidence,
            "caption": None if caption.error else caption.text,
            "caption_model": model,
            "caption_error": caption.error,
        }

    def _documents(self, path: str) -> Iterator[tuple[int, Document]]:
        if self._video:
            for document in self._store.frames([path], unfiltered=True):
                yield document["frame_number"] - 1, document
        else:
            yield 0, self._store.sample_document(path)

    def _write(self, frame: int, name: str, value: Document) -> None:
        if not self._video:
            self._store.write_sample({name: value})
            return
        update = self._store.frame_update(frame + 1, name, {"$literal": value})
        self._store.write_frames(name, [update], [value])

    def _unset(
        self, names: Sequence[str | None], support: Support | None, query: Document
    ) -> None:
        for name in filter(None, names):
            if self._video:
                found = {f"{name}._cls": {"$exists": True}, **query}
                found.update(self._store.frame_query(support))
                update = {"$set": {name: None, "last_modified_at": now()}}
                self._store.write_frames(name, [FrameUpdate(found, update, many=True)])
            elif not query:
                self._store.write_sample({name: None})
