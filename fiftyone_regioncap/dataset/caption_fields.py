"""A field of captions, on videos or images: read it, add to it, show parts of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import fiftyone as fo
import fiftyone.core.clips as foc
import fiftyone.core.collections as foco
import fiftyone.core.media as fom
import fiftyone.core.patches as fop
import fiftyone.core.view as fov
from bson import ObjectId
from fiftyone import ViewField as F
from pymongo.errors import CursorNotFound

from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.embeddings import VECTOR
from fiftyone_regioncap.dataset.geometry import labels_of
from fiftyone_regioncap.dataset.schema import Declared, declare
from fiftyone_regioncap.dataset.store import Document

_SAMPLES_AT_ONCE = 1000


@dataclass(frozen=True)
class CaptionField:
    """A field whose labels have a ``caption`` each.

    Attributes:
        dataset: Dataset that has the field.
        name: Name of the field: TemporalDetections on videos, regions on images.
        labels: Path of the labels in the sample's document.
    """

    dataset: fo.Dataset
    name: str
    labels: str

    @classmethod
    def of(cls, samples: foco.SampleCollection, name: str) -> CaptionField:
        """Finds out what kind of field it is.

        Args:
            samples: The dataset, or a view of it.
            name: Name of the field.

        Raises:
            FieldError: When there is no such field, or it can't have captions.
        """
        dataset = samples._root_dataset
        image = dataset.media_type == fom.IMAGE
        (fields.require_regions if image else fields.require_captions)(dataset, name)
        kind = dataset.get_field(name).document_type
        inner = getattr(kind, "_LABEL_LIST_FIELD", None)
        return cls(dataset, name, f"{name}.{inner}" if inner else name)

    @property
    def of_images(self) -> bool:
        """Whether its labels are regions of images."""
        return self.dataset.media_type == fom.IMAGE

    @property
    def confidence(self) -> str:
        """Attribute with the captioner's confidence; a region has one of its own."""
        return "caption_confidence" if self.of_images else "confidence"

    @property
    def error(self) -> str:
        """Attribute with the reason why there is no caption."""
        return "caption_error" if self.of_images else "error"

    @property
    def embedded(self) -> bool:
        """Whether regions of the field were ever embedded."""
        return self.dataset.has_field(f"{self.labels}.{VECTOR}")

    def documents(
        self,
        attributes: Sequence[str],
        *,
        query: Mapping[str, Any] | None = None,
        paths: Sequence[str] = (),
    ) -> Iterator[tuple[Document, list[Document]]]:
        """Reads labels as they are stored in the database, sample by sample.

        Args:
            attributes: Attributes of the labels to load, besides their id.
            query: MongoDB query for the samples to read; None for all.
            paths: Paths of the sample's document to load too; none by default.

        Yields:
            The sample's document and its labels.
        """
        loaded = [*paths, *(f"{self.labels}.{name}" for name in ("_id", *attributes))]
        samples = self.dataset._sample_collection
        rest, read = dict(query or {}), []
        while True:
            try:
                for document in samples.find(
                    rest, dict.fromkeys(loaded, 1), batch_size=_SAMPLES_AT_ONCE
                ):
                    read.append(document["_id"])
                    yield document, labels_of(document.get(self.name))
                return
            except CursorNotFound:  # nobody has asked for more in ten minutes
                rest = {"$and": [dict(query or {}), {"_id": {"$nin": read}}]}

    def in_view(
        self, samples: foco.SampleCollection, attributes: Sequence[str]
    ) -> Iterator[tuple[Document, list[Document]]]:
        """Yields the labels that a view shows; see :meth:`documents`.

        Samples without labels are left out.
        """
        ids = self.ids_in(samples)
        if ids is None:
            yield from self.documents(attributes)
            return
        shown = {ObjectId(label_id) for label_id in ids}
        key = f"{self.labels}._id"
        for sample, labels in self.documents(attributes, query={key: {"$ne": None}}):
            kept = [label for label in labels if label["_id"] in shown]
            if kept:
                yield sample, kept

    def ids_in(self, samples: foco.SampleCollection) -> list[str] | None:
        """Ids of the labels in a view; None for those of the whole dataset.

        Clips of anything but this field hold the captions whose frames lie in them.
        """
        if isinstance(samples, fo.Dataset):
            return None
        if isinstance(samples, foc.ClipsView):
            if samples._clips_stage.field_or_expr == self.name:
                return samples.values("id")
            return self._ids_inside(samples)
        if isinstance(samples, fop.PatchesView):
            if getattr(samples._patches_stage, "field", None) == self.name:
                return samples.values("id")
            samples = self.dataset.select(samples.values("sample_id"))
        if not samples._all_stages:
            return None
        ids = samples.values(f"{self.labels}.id", unwind=True)
        return [label_id for label_id in ids if label_id is not None]

    def _ids_inside(self, clips: foc.ClipsView) -> list[str]:
        ranges: dict[ObjectId, list[tuple[int, int]]] = defaultdict(list)
        for sample_id, support in zip(
            *clips.values(["_sample_id", "support"]), strict=True
        ):
            ranges[sample_id].append(tuple(support))
        found = self.documents(["support"], query={"_id": {"$in": list(ranges)}})
        return [
            str(label["_id"])
            for sample, labels in found
            for label in labels
            if any(
                start <= label["support"][0] and label["support"][1] <= stop
                for start, stop in ranges[sample["_id"]]
            )
        ]

    def view(self, ids: Sequence[str]) -> fov.DatasetView:
        """Labels as clips of their videos or patches of their images, in this order."""
        wanted = F("_id").is_in([ObjectId(label_id) for label_id in ids])
        found = self.dataset.filter_labels(self.name, wanted)
        return self.each(found).select(list(ids), ordered=True)

    def each(self, samples: foco.SampleCollection) -> fov.DatasetView:
        """Makes a view of labels as clips of videos or patches of images."""
        if self.dataset.media_type == fom.IMAGE:
            return samples.to_patches(self.name)
        return samples.to_clips(self.name)

    def alone(self, clips: fov.DatasetView) -> fov.DatasetView:
        """Makes clips of captions without the labels of other objects.

        Labels that are of no object stay. Views of anything but clips stay as they are.
        """
        if not isinstance(clips, foc.ClipsView):
            return clips
        shown = (F("index") == F(f"${self.name}.index")) | (F("index") == None)  # noqa: E711
        for field in fields.track_fields(self.dataset):
            clips = clips.filter_labels(field, shown, only_matches=False)
        return clips

    def write(
        self,
        attribute: str,
        values: Mapping[str, Any],
        kind: type,
        subfield: type | None = None,
    ) -> None:
        """Writes an attribute of labels, and declares it.

        Args:
            attribute: Name of the attribute.
            values: Values by label id; other labels are left as they are.
            kind: Type of the attribute's field.
            subfield: Type of a list's elements; None for others than lists.

        Raises:
            FieldError: When the name is none, or taken by another type.
        """
        path = f"{self.labels}.{fields.require_output(attribute)}"
        declare(self.dataset, [Declared(path, kind, subfield)])
        if values:
            self.dataset.set_label_values(path, dict(values))

    def changed_since(self, time: datetime | None) -> dict[str, Any]:
        """Returns a query for samples that changed at a time or later; all for None."""
        return {} if time is None else {"last_modified_at": {"$gte": time}}

    def sample_ids(self) -> Iterator[ObjectId]:
        """Yields the ids of all samples."""
        for document in self.dataset._sample_collection.find({}, {"_id": 1}):
            yield document["_id"]

    def count_samples(self) -> int:
        """Counts the samples."""
        return self.dataset._sample_collection.count_documents({})


def caption_fields(dataset: fo.Dataset) -> list[str]:
    """Fields that can have captions: those of tracks, or regions that have some."""
    if dataset.media_type != fom.IMAGE:
        return fields.caption_fields(dataset)
    found = [CaptionField.of(dataset, name) for name in fields.region_fields(dataset)]
    return [f.name for f in found if dataset.has_field(f"{f.labels}.caption")]
