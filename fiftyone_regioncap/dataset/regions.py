"""Regions of images: read them, and write what was said of them beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import fiftyone as fo
import numpy as np

from fiftyone_regioncap.captioning.base import EmbeddingSpace
from fiftyone_regioncap.core.types import Caption
from fiftyone_regioncap.dataset import embeddings
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding
from fiftyone_regioncap.dataset.fields import require_regions
from fiftyone_regioncap.dataset.geometry import Shape, labels_of, shape_of
from fiftyone_regioncap.dataset.schema import declare_embeddings, declare_regions


@dataclass(frozen=True)
class ImageRegion:
    """One region of an image.

    Attributes:
        id: Id of its label.
        shape: Geometry in pixels: a box, a mask, or points with signs.
        label: Label of the region; None when unknown.
        caption: Earlier caption; None when there is none.
    """

    id: str
    shape: Shape
    label: str | None = None
    caption: str | None = None


def read_regions(
    sample: fo.Sample | fo.SampleView, field: str, *, height: int, width: int
) -> list[ImageRegion]:
    """Reads the regions of an image.

    Args:
        sample: Image in a dataset.
        field: Field of Detections, Polylines or Keypoints, or of a single one of them.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        Regions that have a geometry (see :func:`~.geometry.shape_of`).

    Raises:
        FieldError: When there is no such field, or a mask on disk can't be read.
    """
    require_regions(sample._collection, field)
    value = sample[field]
    found = []
    for label in labels_of(None if value is None else value.to_mongo().to_dict()):
        shape = shape_of(label, height, width)
        if shape is not None:
            found.append(
                ImageRegion(
                    id=str(label["_id"]),
                    shape=shape,
                    label=label.get("label"),
                    caption=label.get("caption"),
                )
            )
    return found


def region_captions(
    sample: fo.Sample | fo.SampleView, field: str
) -> dict[str, tuple[str | None, bool]]:
    """Reads captions of an image's regions by label id, and if a model wrote them.

    Raises:
        FieldError: When there is no such field.
    """
    require_regions(sample._collection, field)
    value = sample[field]
    labels = labels_of(None if value is None else value.to_mongo().to_dict())
    return {
        str(label["_id"]): (label.get("caption"), bool(label.get("caption_model")))
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
    """Writes captions onto regions and saves the sample.

    A region gets ``caption``, ``caption_confidence``, ``caption_model``,
    ``caption_error``, ``caption_attributes`` and ``caption_category`` with scores; its
    tags are added to the ``tags`` it has, with scores in ``caption_tag_scores``. A
    region embedding that a caption comes with is kept too; one without leaves what is
    there, which is about the region and not the caption.

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
    declare_regions(sample._dataset, require_regions(sample._collection, field))
    if space is not None:
        declare_embeddings(sample._dataset, field)
    value = sample[field]
    list_field = getattr(value, "_LABEL_LIST_FIELD", None)
    labels = getattr(value, list_field) if list_field else filter(None, [value])
    for label in labels:
        caption = captions.get(label.id)
        if caption is None:
            continue
        label["caption"] = None if caption.error else caption.text
        label["caption_confidence"] = caption.confidence
        label["caption_model"] = model
        label["caption_error"] = caption.error
        label["caption_tag_scores"] = [score for _, score in caption.tags]
        label["caption_attributes"] = [name for name, _ in caption.attributes]
        label["caption_attribute_scores"] = [score for _, score in caption.attributes]
        label["caption_category"], label["caption_category_score"] = (
            caption.category or (None, None)
        )
        embedding = RegionEmbedding.of(caption.embedding, space)
        if embedding is not None:
            label[embeddings.VECTOR] = embedding.vector().astype(np.float16)
            label[embeddings.MODEL] = embedding.model
            label[embeddings.REVISION] = embedding.revision
        new = [tag for tag, _ in caption.tags if tag not in label.tags]
        label.tags = [*label.tags, *new]
    sample.save()
