"""Declares what this package writes, so that the App and queries know it at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import fiftyone as fo

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset import embeddings
from fiftyone_regioncap.dataset.fields import frames_field, require_regions
from fiftyone_regioncap.dataset.store import frame_path


@dataclass(frozen=True)
class _Attribute:
    """One declared attribute of a label.

    Attributes:
        name: Name in queries.
        kind: Field type.
        inner: Type inside a list or embedded document; None for scalars.
    """

    name: str
    kind: type
    inner: type | None = None

    def declare(self, add: Callable[..., None], label: str) -> None:
        """Adds the attribute to a label's path."""
        path = f"{label}.{self.name}"
        if self.kind is fo.EmbeddedDocumentField:
            add(path, self.kind, embedded_doc_type=self.inner)
        elif self.kind is fo.ListField:
            add(path, self.kind, subfield=self.inner)
        else:
            add(path, self.kind)


_INSTANCE = _Attribute("instance", fo.EmbeddedDocumentField, fo.Instance)
_TRACK_ATTRIBUTES = (
    _INSTANCE,
    _Attribute("keyframe", fo.BooleanField),
    _Attribute("caption", fo.StringField),
)
_CAPTION_ATTRIBUTES = (
    _Attribute("index", fo.IntField),
    _INSTANCE,
    _Attribute("caption", fo.StringField),
    _Attribute("min_confidence", fo.FloatField),
    _Attribute("agreement", fo.FloatField),
    _Attribute("tag_scores", fo.ListField, fo.FloatField),
    _Attribute("attributes", fo.ListField, fo.StringField),
    _Attribute("attribute_scores", fo.ListField, fo.FloatField),
    _Attribute("category", fo.StringField),
    _Attribute("category_score", fo.FloatField),
    _Attribute("model", fo.StringField),
    _Attribute("revision", fo.StringField),
    _Attribute("prompt", fo.StringField),
    _Attribute("frames_used", fo.ListField, fo.IntField),
    _Attribute("visible_fraction", fo.FloatField),
    _Attribute("mean_area", fo.FloatField),
    _Attribute("speed", fo.FloatField),
    _Attribute("direction", fo.StringField),
    _Attribute("dominant_color", fo.StringField),
    _Attribute("review", fo.StringField),
    _Attribute("source_caption", fo.StringField),
    _Attribute("error", fo.StringField),
)
_REGION_ATTRIBUTES = (
    _Attribute("caption", fo.StringField),
    _Attribute("caption_confidence", fo.FloatField),
    _Attribute("caption_model", fo.StringField),
    _Attribute("caption_error", fo.StringField),
    _Attribute("caption_tag_scores", fo.ListField, fo.FloatField),
    _Attribute("caption_attributes", fo.ListField, fo.StringField),
    _Attribute("caption_attribute_scores", fo.ListField, fo.FloatField),
    _Attribute("caption_category", fo.StringField),
    _Attribute("caption_category_score", fo.FloatField),
)

_DENSE_ATTRIBUTES = (
    _Attribute("caption", fo.StringField),
    _Attribute("caption_model", fo.StringField),
    _Attribute("caption_error", fo.StringField),
)
_HEATMAP_ATTRIBUTES = (_Attribute("query", fo.StringField),)


def declare_tracks(dataset: fo.Dataset, field: str) -> None:
    """Declares a frame field for tracks; does nothing where that was done.

    Args:
        dataset: Dataset of videos.
        field: Name of the field, with or without ``frames.`` in front.

    Raises:
        FieldError: When the dataset has no frames, or the field exists with another
            type.
    """
    name = frame_path(field)
    if dataset.get_frame_field_schema() is None:
        raise FieldError(
            f"{dataset.name} is a dataset of {dataset.media_type}s, which have no "
            f"frames to hold {frames_field(field)!r}; add videos first"
        )
    _declare(
        dataset.add_frame_field,
        name,
        fo.Detections,
        "detections",
        _TRACK_ATTRIBUTES,
    )


def declare_captions(dataset: fo.Dataset, field: str) -> None:
    """Declares a field for captions of tracks, and its status fields.

    Args:
        dataset: Dataset of videos.
        field: Name of the sample-level field.

    Raises:
        FieldError: When the field exists with another type.
    """
    _declare(
        dataset.add_sample_field,
        field,
        fo.TemporalDetections,
        "detections",
        _CAPTION_ATTRIBUTES,
    )


def declare_regions(dataset: fo.Dataset, field: str) -> None:
    """Declares the caption attributes of a field of image regions.

    Args:
        dataset: Dataset of images.
        field: Field of Detections, Polylines or Keypoints, or of a single one of them.

    Raises:
        FieldError: When there is no such field, or an attribute exists with another
            type.
    """
    kind = dataset.get_field(require_regions(dataset, field)).document_type
    _declare(
        dataset.add_sample_field,
        field,
        kind,
        getattr(kind, "_LABEL_LIST_FIELD", None),
        _REGION_ATTRIBUTES,
    )


def declare_embeddings(dataset: fo.Dataset, field: str) -> None:
    """Declares what a field's labels keep of region embeddings.

    Args:
        dataset: Dataset that has the field.
        field: Existing field of captions of tracks, or of image regions.

    Raises:
        FieldError: When an attribute exists with another type.
    """
    kind = dataset.get_field(field).document_type
    attributes = tuple(_Attribute(*item) for item in embeddings.ATTRIBUTES.items())
    inner = getattr(kind, "_LABEL_LIST_FIELD", None)
    _declare(dataset.add_sample_field, field, kind, inner, attributes)


def declare_dense(
    dataset: fo.Dataset, field: str, heatmap: str | None, *, frames: bool
) -> None:
    """Declares fields for captioned parts of images and for similarity maps.

    Args:
        dataset: Dataset of images or videos.
        field: Field for the parts, with or without ``frames.`` in front.
        heatmap: Field for the maps, likewise; None for none.
        frames: Whether they are fields of frames.

    Raises:
        FieldError: When a field exists with another type.
    """
    add = dataset.add_frame_field if frames else dataset.add_sample_field
    name = frame_path(field)
    _declare(add, name, fo.Detections, "detections", _DENSE_ATTRIBUTES)
    if heatmap is not None:
        name = frame_path(heatmap)
        _declare(add, name, fo.Heatmap, None, _HEATMAP_ATTRIBUTES)


def declare_status(dataset: fo.Dataset, field: str) -> None:
    """Declares the fields that say how far samples have come with a field.

    Args:
        dataset: The dataset.
        field: Field of tracks, captions or regions, with or without ``frames.`` in
            front.

    Raises:
        FieldError: When one of them exists with another type.
    """
    _declare_plain(dataset, (status_field(field), error_field(field)), fo.StringField)


def declare_origins(dataset: fo.Dataset, field: str) -> None:
    """Declares the field that says what a field's labels were made from."""
    _declare_plain(dataset, (origin_field(field),), fo.DictField)


def status_field(field: str) -> str:
    """Returns the sample-level field with the state of a field: ``<field>_status``."""
    return f"{frame_path(field)}_status"


def error_field(field: str) -> str:
    """Returns the sample-level field with a field's first error: ``<field>_error``."""
    return f"{frame_path(field)}_error"


def origin_field(field: str) -> str:
    """Returns the sample-level field with a field's origins: ``<field>_origin``."""
    return f"{frame_path(field)}_origin"


def _declare_plain(dataset: fo.Dataset, names: tuple[str, ...], kind: type) -> None:
    for name in names:
        try:
            dataset.add_sample_field(name, kind)
        except ValueError as wrong:
            raise FieldError(
                f"the field {name!r} exists with another type; rename it, or choose "
                f"another output field ({wrong})"
            ) from wrong


def _declare(
    add: Callable[..., None],
    field: str,
    kind: type,
    labels: str | None,
    attributes: tuple[_Attribute, ...],
) -> None:
    try:
        add(field, fo.EmbeddedDocumentField, embedded_doc_type=kind)
        path = f"{field}.{labels}" if labels else field
        for attribute in attributes:
            attribute.declare(add, path)
    except ValueError as wrong:
        raise FieldError(
            f"the field {field!r} exists with another type; give the result a field "
            f"of its own ({wrong})"
        ) from wrong
