"""Declares what this package writes, so that the App and queries know it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import fiftyone as fo
import fiftyone.core.odm as foo

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset import embeddings
from fiftyone_regioncap.dataset.fields import frames_field, require_regions
from fiftyone_regioncap.dataset.locks import locked
from fiftyone_regioncap.dataset.store import (
    FRAMES_PREFIX,
    absent_fields,
    frame_path,
    read_only,
    refresh_schema,
    undisturbed,
)


@dataclass(frozen=True)
class Declared:
    """A field, or an attribute of a label, that is declared.

    Attributes:
        name: Name, or path of dots.
        kind: Field type.
        inner: Type inside a list or embedded document; None for scalars.
    """

    name: str
    kind: type
    inner: type | None = None

    @property
    def field(self) -> fo.Field:
        """FiftyOne's field for it."""
        inner = "subfield" if self.kind is fo.ListField else "embedded_doc_type"
        name = self.name.rpartition(".")[2]
        return foo.create_field(name, self.kind, **{inner: self.inner})


_INSTANCE = Declared("instance", fo.EmbeddedDocumentField, fo.Instance)
_TRACK_ATTRIBUTES = (
    _INSTANCE,
    Declared("keyframe", fo.BooleanField),
    Declared("caption", fo.StringField),
)
_CAPTION_ATTRIBUTES = (
    Declared("index", fo.IntField),
    _INSTANCE,
    Declared("caption", fo.StringField),
    Declared("min_confidence", fo.FloatField),
    Declared("agreement", fo.FloatField),
    Declared("tag_scores", fo.ListField, fo.FloatField),
    Declared("attributes", fo.ListField, fo.StringField),
    Declared("attribute_scores", fo.ListField, fo.FloatField),
    Declared("category", fo.StringField),
    Declared("category_score", fo.FloatField),
    Declared("model", fo.StringField),
    Declared("revision", fo.StringField),
    Declared("prompt", fo.StringField),
    Declared("frames_used", fo.ListField, fo.IntField),
    Declared("visible_fraction", fo.FloatField),
    Declared("mean_area", fo.FloatField),
    Declared("speed", fo.FloatField),
    Declared("direction", fo.StringField),
    Declared("dominant_color", fo.StringField),
    Declared("review", fo.StringField),
    Declared("source_caption", fo.StringField),
    Declared("error", fo.StringField),
)
_REVIEW_ATTRIBUTES = (
    Declared("review", fo.StringField),
    Declared("source_caption", fo.StringField),
    Declared("reviewed_by", fo.StringField),
    Declared("reviewed_at", fo.DateTimeField),
    Declared("review_history", fo.ListField, fo.DictField),
)
_REGION_ATTRIBUTES = (
    Declared("caption", fo.StringField),
    Declared("caption_confidence", fo.FloatField),
    Declared("caption_model", fo.StringField),
    Declared("caption_error", fo.StringField),
    Declared("caption_tag_scores", fo.ListField, fo.FloatField),
    Declared("caption_attributes", fo.ListField, fo.StringField),
    Declared("caption_attribute_scores", fo.ListField, fo.FloatField),
    Declared("caption_category", fo.StringField),
    Declared("caption_category_score", fo.FloatField),
)

SAID_OF_REGIONS: tuple[str, ...] = (
    *(item.name for item in (*_REGION_ATTRIBUTES, *_REVIEW_ATTRIBUTES)),
    *embeddings.ATTRIBUTES,
)
"""Attributes of a region that are about its caption, not about where it is."""

_DENSE_ATTRIBUTES = (
    Declared("caption", fo.StringField),
    Declared("caption_model", fo.StringField),
    Declared("caption_error", fo.StringField),
)
_HEATMAP_ATTRIBUTES = (Declared("query", fo.StringField),)

_ATTEMPTS = 5

_declared_before: WeakKeyDictionary[type, set[tuple[Declared, ...]]] = (
    WeakKeyDictionary()
)
"""What was declared, by FiftyOne's class of a dataset's documents."""


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
    _declare(dataset, name, fo.Detections, "detections", _TRACK_ATTRIBUTES, frames=True)


def declare_labels(dataset: fo.Dataset, field: str, kind: type[fo.Label]) -> None:
    """Declares a frame field for lists of labels, such as prompts.

    Args:
        dataset: Dataset of videos.
        field: Name of the field, with or without ``frames.`` in front.
        kind: Type of the lists, such as ``fo.Detections``.

    Raises:
        FieldError: When the field exists with another type.
    """
    _declare(dataset, frame_path(field), kind, kind._LABEL_LIST_FIELD, (), frames=True)


def declare_events(dataset: fo.Dataset, field: str) -> None:
    """Declares a field for events of videos, such as shots.

    Args:
        dataset: Dataset of videos.
        field: Name of the sample-level field.

    Raises:
        FieldError: When the field exists with another type.
    """
    _declare(dataset, field, fo.TemporalDetections, "detections", ())


def declare_captions(dataset: fo.Dataset, field: str) -> None:
    """Declares a field for captions of tracks, and its status fields.

    Args:
        dataset: Dataset of videos.
        field: Name of the sample-level field.

    Raises:
        FieldError: When the field exists with another type.
    """
    _declare(
        dataset,
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
        dataset,
        field,
        kind,
        getattr(kind, "_LABEL_LIST_FIELD", None),
        _REGION_ATTRIBUTES,
    )


def declare_review(dataset: fo.Dataset, labels: str) -> None:
    """Declares what a person's review keeps on captions.

    Args:
        dataset: Dataset that has the captions.
        labels: Path of their labels, such as ``"captions.detections"``.

    Raises:
        FieldError: When an attribute exists with another type.
    """
    declare(
        dataset,
        [replace(item, name=f"{labels}.{item.name}") for item in _REVIEW_ATTRIBUTES],
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
    attributes = tuple(Declared(*item) for item in embeddings.ATTRIBUTES.items())
    inner = getattr(kind, "_LABEL_LIST_FIELD", None)
    _declare(dataset, field, kind, inner, attributes)


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
    name = frame_path(field)
    _declare(dataset, name, fo.Detections, "detections", _DENSE_ATTRIBUTES, frames)
    if heatmap is not None:
        name = frame_path(heatmap)
        _declare(dataset, name, fo.Heatmap, None, _HEATMAP_ATTRIBUTES, frames)


def declare_status(dataset: fo.Dataset, field: str) -> None:
    """Declares the fields that say how far samples have come with a field.

    Args:
        dataset: The dataset.
        field: Field of tracks, captions or regions, with or without ``frames.`` in
            front.

    Raises:
        FieldError: When one of them exists with another type.
    """
    declare(
        dataset,
        [
            Declared(status_field(field), fo.StringField),
            Declared(error_field(field), fo.StringField),
        ],
    )


def declare_text(dataset: fo.Dataset, name: str) -> None:
    """Declares a sample-level field of text."""
    declare(dataset, [Declared(name, fo.StringField)])


def declare_origins(dataset: fo.Dataset, field: str) -> None:
    """Declares the field that says what a field's labels were made from."""
    declare(dataset, [Declared(origin_field(field), fo.DictField)])


def declare_objects(dataset: fo.Dataset, field: str) -> None:
    """Declares the field that says which number each object has in a field."""
    declare(dataset, [Declared(objects_field(field), fo.DictField)])


def status_field(field: str) -> str:
    """Returns the sample-level field with the state of a field: ``<field>_status``."""
    return f"{frame_path(field)}_status"


def error_field(field: str) -> str:
    """Returns the sample-level field with a field's first error: ``<field>_error``."""
    return f"{frame_path(field)}_error"


def origin_field(field: str) -> str:
    """Returns the sample-level field with a field's origins: ``<field>_origin``."""
    return f"{frame_path(field)}_origin"


def objects_field(field: str) -> str:
    """Returns the sample-level field of objects' numbers: ``<field>_objects``."""
    return f"{frame_path(field)}_objects"


def declare(
    dataset: fo.Dataset, declared: Sequence[Declared], *, frames: bool = False
) -> None:
    """Declares fields; does nothing where that was done.

    FiftyOne saves the list of a dataset's fields as a whole, so that of two processes
    that add fields at once one undoes what the other did. A lock in the database keeps
    those of this package apart, and fields that others have undone are added again.

    Args:
        dataset: The dataset.
        declared: Fields and attributes, an attribute's field before it.
        frames: Whether they are fields of frames.

    Raises:
        FieldError: When one exists with another type.
    """
    merge = (
        dataset._merge_frame_field_schema
        if frames
        else dataset._merge_sample_field_schema
    )
    kind = dataset._frame_doc_cls if frames else dataset._sample_doc_cls
    before = _declared_before.setdefault(kind, set())
    prefix = FRAMES_PREFIX * frames
    paths = [prefix + item.name for item in declared]
    roots = {path.removeprefix(prefix).split(".")[0] for path in paths}
    fields = [prefix + root for root in sorted(roots)]

    wanted = tuple(declared)
    if wanted in before and all(map(dataset.get_field, fields)):
        return  # what is written is compared with the database anyway

    def add_all() -> None:
        # All attributes of a field at once: each call saves the fields of the whole
        # dataset and reads them back.
        parts: dict[tuple[str, bool], dict[str, fo.Field]] = {}
        for item in declared:
            root, dot, _ = item.name.partition(".")
            parts.setdefault((root, bool(dot)), {})[item.name] = item.field
        for (root, _), part in parts.items():
            try:
                undisturbed(partial(merge, part))
            except ValueError as wrong:
                there = dataset.get_field(prefix + root)
                if there is not None and there.read_only:
                    raise read_only(prefix + root) from wrong
                raise FieldError(
                    f"the field {root!r} exists with another type; rename it, or give "
                    f"the result a field of its own ({wrong})"
                ) from wrong

    known = all(dataset.get_field(path) is not None for path in paths)
    if known and not absent_fields(dataset, fields):
        add_all()  # which compares the types
        before.add(wanted)
        return
    with locked(f"schema of {dataset._doc.id}"):
        for _ in range(_ATTEMPTS):
            refresh_schema(dataset)
            add_all()
            if not absent_fields(dataset, fields):
                return
    raise FieldError(
        f"{', '.join(fields)} cannot be added to {dataset.name}: other programs change "
        "its fields at the same time; run the job again"
    )


def _declare(
    dataset: fo.Dataset,
    field: str,
    kind: type,
    labels: str | None,
    attributes: tuple[Declared, ...],
    frames: bool = False,
) -> None:
    """Declares a field of labels with their attributes."""
    path = f"{field}.{labels}" if labels else field
    own = [replace(item, name=f"{path}.{item.name}") for item in attributes]
    root = Declared(field, fo.EmbeddedDocumentField, kind)
    declare(dataset, [root, *own], frames=frames)
