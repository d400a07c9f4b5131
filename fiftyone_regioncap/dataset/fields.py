"""Finds the fields of a dataset that are of the right kind, or explains errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import fiftyone as fo
import fiftyone.core.collections as foc

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.field_names import (
    FRAMES_PREFIX,
    OWN_FIELDS,
    field_name_problem,
)
from fiftyone_regioncap.dataset.store import frame_path, read_only

Collection: TypeAlias = foc.SampleCollection
"""A dataset or any view of one."""

TRACKS = "frames.tracks"
"""Where tracks are written unless asked otherwise."""

BOXES = (fo.Detections, fo.Detection)
REGIONS = (*BOXES, fo.Polylines, fo.Polyline, fo.Keypoints, fo.Keypoint)


def prompt_fields(collection: Collection) -> list[str]:
    """Fields that can say where objects are, frame fields first."""
    return [
        *_fields(collection, REGIONS, frames=True),
        *_fields(collection, REGIONS, frames=False),
    ]


def track_fields(collection: Collection) -> list[str]:
    """Frame fields that can hold tracks; that of tracks unless named otherwise first.

    Prompts may be boxes too, and their field is mostly older.
    """
    found = _fields(collection, (fo.Detections,), frames=True)
    return sorted(found, key=lambda field: field != TRACKS)


def caption_fields(collection: Collection) -> list[str]:
    """Fields of a video dataset that can hold captions."""
    return _fields(collection, (fo.TemporalDetections,), frames=False)


def region_fields(collection: Collection) -> list[str]:
    """Fields of an image dataset whose regions can be captioned."""
    return _fields(collection, REGIONS, frames=False)


def require_prompts(collection: Collection, field: str) -> str:
    """Gives the field back when it can hold prompts.

    Raises:
        FieldError: When it doesn't exist or is of another kind; names those that fit.
    """
    return _require(field, prompt_fields(collection), "boxes, points or polylines")


def require_tracks(collection: Collection, field: str) -> str:
    """Gives the field back, with ``frames.`` in front, when it can hold tracks.

    Raises:
        FieldError: When it doesn't exist or is of another kind; names those that fit.
    """
    return _require(frames_field(field), track_fields(collection), "tracks")


def require_captions(collection: Collection, field: str) -> str:
    """Gives the field back when it holds captions of tracks.

    Raises:
        FieldError: When it doesn't exist or is of another kind; names those that fit.
    """
    return _require(field, caption_fields(collection), "captions")


def require_regions(collection: Collection, field: str) -> str:
    """Gives the field back when it holds regions of images.

    Raises:
        FieldError: When it doesn't exist or is of another kind; names those that fit.
    """
    return _require(field, region_fields(collection), "regions")


def require_output(output: str, *inputs: str) -> str:
    """Gives the name back when it can be written without destroying an input.

    Raises:
        FieldError: When the name is that of an input, with or without ``frames.``, one
            of FiftyOne's own, or no name for a field.
    """
    name = frame_path(output)
    if (problem := field_name_problem(output)) is not None:
        raise FieldError(problem)
    # A frame field and a sample field of one name would share their status fields.
    if name in map(frame_path, inputs):
        raise FieldError(
            f"{output!r} is also the name of the input; give the result a name of its "
            "own, so that nothing is overwritten"
        )
    return output


def require_writable(
    dataset: fo.Dataset, field: str, kind: type[fo.Label] | None = None
) -> str:
    """Gives a field back when labels may be written into it.

    Args:
        dataset: The dataset.
        field: With ``frames.`` in front for a field of frames.
        kind: Type of the labels; None for those that the field has.

    Raises:
        FieldError: When it is one of FiftyOne's own fields, read-only, or of another
            type.
    """
    name = frame_path(field)
    if name in OWN_FIELDS or name == dataset.group_field:
        raise FieldError(f"{field!r} is FiftyOne's own; give the result another field")
    existing = dataset.get_field(field)
    if existing is not None and existing.read_only:
        raise read_only(field)
    found = getattr(existing, "document_type", type(existing))
    if existing is not None and kind not in (None, found):
        raise FieldError(
            f"the field {name!r} exists with another type ({found.__name__}, not "
            f"{kind.__name__}); rename it, or give the result a field of its own"
        )
    return field


def frames_field(field: str) -> str:
    """Returns the field with ``frames.`` in front, whether or not it was there."""
    return FRAMES_PREFIX + frame_path(field)


def _fields(
    collection: Collection, kinds: tuple[type, ...], *, frames: bool
) -> list[str]:
    # A schema of None means a dataset without frames.
    schema = (
        collection.get_frame_field_schema(
            ftype=fo.EmbeddedDocumentField, embedded_doc_type=kinds
        )
        if frames
        else collection.get_field_schema(
            ftype=fo.EmbeddedDocumentField, embedded_doc_type=kinds
        )
    )
    return [FRAMES_PREFIX * frames + name for name in schema or {}]


def _require(field: str, fitting: Iterable[str], what: str) -> str:
    fitting = list(fitting)
    if field not in fitting:
        choices = ", ".join(fitting) if fitting else "there is none yet"
        raise FieldError(
            f"no field {field!r} that holds {what}; fields that do: {choices}"
        )
    return field
