"""Regions of images: read them, and write what was said of them beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import fiftyone as fo
from bson import ObjectId

from fiftyone_regioncap.captioning.base import EmbeddingSpace
from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import Caption
from fiftyone_regioncap.dataset.captions import CaptionRecord, read_region
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding
from fiftyone_regioncap.dataset.fields import require_regions
from fiftyone_regioncap.dataset.generated import write_through
from fiftyone_regioncap.dataset.geometry import Shape, labels_of, shape_of
from fiftyone_regioncap.dataset.schema import declare_embeddings, declare_regions
from fiftyone_regioncap.dataset.store import Document, Store


@dataclass(frozen=True)
class ImageRegion:
    """One region of an image.

    Attributes:
        id: Id of its label.
        shape: Geometry in pixels: a box, a mask, or points with signs.
        label: Label of the region; None when unknown.
        caption: Earlier caption; None when there is none.
        problem: Why the label has no geometry, and what to do; None when it has one.
    """

    id: str
    shape: Shape
    label: str | None = None
    caption: str | None = None
    problem: str | None = None


def read_regions(
    sample: fo.Sample | fo.SampleView,
    field: str,
    *,
    height: int,
    width: int,
    with_problems: bool = False,
) -> list[ImageRegion]:
    """Reads the regions of an image.

    Args:
        sample: Image in a dataset.
        field: Field of Detections, Polylines or Keypoints, or of a single one of them.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        with_problems: Whether labels whose geometry is wrong are returned too, with
            their problem; they are left out otherwise.

    Returns:
        Regions that have a geometry (see :func:`~.geometry.shape_of`).

    Raises:
        FieldError: When there is no such field.
    """
    require_regions(sample._collection, field)
    value = sample[field]
    found = []
    for label in labels_of(None if value is None else value.to_mongo().to_dict()):
        problem = None
        try:
            shape = shape_of(label, height, width)
        except FieldError as error:
            problem = f"label {label['_id']}: {error}"
            shape = Shape() if with_problems else None
        if shape is not None:
            found.append(
                ImageRegion(
                    id=str(label["_id"]),
                    shape=shape,
                    label=label.get("label"),
                    caption=label.get("caption"),
                    problem=problem,
                )
            )
    return found


def region_records(
    sample: fo.Sample | fo.SampleView, field: str
) -> dict[str, CaptionRecord]:
    """Reads what is said of an image's regions by label id.

    Raises:
        FieldError: When there is no such field.
    """
    require_regions(sample._collection, field)
    value = sample[field]
    labels = labels_of(None if value is None else value.to_mongo().to_dict())
    return {
        str(label["_id"]): read_region(label)
        for label in labels
        if label.get("bounding_box") or label.get("points")
    }


def write_region_captions(
    sample: fo.Sample | fo.SampleView,
    field: str,
    captions: Mapping[str, Caption],
    *,
    model: str,
    space: EmbeddingSpace | None = None,
) -> None:
    """Writes captions onto regions, and touches nothing else of them.

    A region gets ``caption``, ``caption_confidence``, ``caption_model``,
    ``caption_error``, ``caption_attributes`` and ``caption_category`` with scores; its
    tags are added to the ``tags`` it has, with a score for each of them all in
    ``caption_tag_scores``; tags of others count 1. A region embedding that a caption
    comes with is kept too; one without leaves what is there, which is about the region
    and not the caption.

    Args:
        sample: Image in a dataset.
        field: Field that the regions were read from.
        captions: Captions by the id of the region's label.
        model: Published name of the weights.
        space: Embedding space of the captions' embeddings.

    Raises:
        FieldError: When there is no such field, or an attribute exists with another
            type.
    """
    store = Store.of(sample)
    require_regions(store.dataset, field)
    declare_regions(store.dataset, field)
    if space is not None:
        declare_embeddings(store.dataset, field)
    kind = store.dataset.get_field(field).document_type
    inner = getattr(kind, "_LABEL_LIST_FIELD", None)
    labels = f"{field}.{inner}" if inner else field
    read = (f"{labels}.{name}" for name in ("_id", "tags", "caption_tag_scores"))
    there = {
        str(label["_id"]): label
        for label in labels_of(store.sample_document(*read).get(field))
    }
    values: Document = {}
    absent: Document = {}
    tags: Document = {}
    filters: list[Document] = []
    for number, (label_id, caption) in enumerate(captions.items()):
        path = field
        if inner is not None:
            path = f"{labels}.$[l{number}]"
            filters.append({f"l{number}._id": ObjectId(label_id)})
        embedding = RegionEmbedding.of(caption.embedding, space)
        own = _attributes(caption, model)
        own["caption_tag_scores"] = _tag_scores(there.get(label_id, {}), caption)
        own.update(embedding.to_document() if embedding else {})
        for name, value in own.items():
            (absent if value is None else values)[f"{path}.{name}"] = value
        tags[f"{path}.tags"] = {"$each": [tag for tag, _ in caption.tags]}
    if values:
        extra = {"$addToSet": tags, **({"$unset": absent} if absent else {})}
        store.write_sample(values, filters or None, extra=extra)
        write_through(sample, field)


def _tag_scores(label: Document, caption: Caption) -> list[float]:
    """Returns the scores of a region's tags, in their order once a caption's are added.

    Tags of others, which have no score, count 1.
    """
    if not caption.tags:
        return []
    tags, scores = label.get("tags") or [], label.get("caption_tag_scores") or []
    if len(scores) != len(tags):  # somebody has added some since, or removed one
        scores = [1.0] * len(tags)
    known = dict(zip(tags, scores, strict=True))
    return [float(score) for score in {**known, **dict(caption.tags)}.values()]


def _attributes(caption: Caption, model: str) -> Document:
    """Returns what a region is given of a caption, beside its tags and embedding."""
    category, score = caption.category or (None, None)
    return {
        "caption": None if caption.error else caption.text,
        "caption_confidence": caption.confidence,
        "caption_model": model,
        "caption_error": caption.error,
        "caption_attributes": [name for name, _ in caption.attributes],
        "caption_attribute_scores": [score for _, score in caption.attributes],
        "caption_category": category,
        "caption_category_score": score,
        # What a person said of the caption that was there.
        "review": None,
        "source_caption": None,
    }
