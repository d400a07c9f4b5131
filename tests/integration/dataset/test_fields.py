from __future__ import annotations

import fiftyone as fo
import pytest

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset import fields, schema

KINDS = {
    "detections": fo.Detections,
    "detection": fo.Detection,
    "polylines": fo.Polylines,
    "keypoints": fo.Keypoints,
    "events": fo.TemporalDetections,
    "classes": fo.Classifications,
    "classification": fo.Classification,
}


@pytest.fixture
def full(dataset: fo.Dataset) -> fo.Dataset:
    """Has a field of each kind on samples and on frames."""
    for name, kind in KINDS.items():
        options = {"embedded_doc_type": kind}
        dataset.add_sample_field(name, fo.EmbeddedDocumentField, **options)
        if kind is not fo.TemporalDetections:
            dataset.add_frame_field(name, fo.EmbeddedDocumentField, **options)
    dataset.add_frame_field("number", fo.IntField)
    return dataset


def test_forms_offer_fields_of_the_right_kind_only(full: fo.Dataset) -> None:
    shapes = ["detections", "detection", "polylines", "keypoints"]
    for collection in (full, full.view()):
        assert fields.prompt_fields(collection) == [
            *(f"frames.{name}" for name in shapes),
            *shapes,
        ]
        assert fields.track_fields(collection) == ["frames.detections"]
        assert fields.caption_fields(collection) == ["events"]


def test_tracks_come_before_prompts(dataset: fo.Dataset) -> None:
    for name in ("prompts", "tracks"):
        dataset.add_frame_field(
            name, fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections
        )
    assert fields.track_fields(dataset) == ["frames.tracks", "frames.prompts"]


def test_forms_of_images(images: fo.Dataset) -> None:
    images.add_sample_field(
        "boxes", fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections
    )
    assert fields.region_fields(images) == ["boxes"]
    assert fields.prompt_fields(images) == ["boxes"]
    assert fields.track_fields(images) == fields.caption_fields(images) == []


def test_fields_that_fit_are_given_back(full: fo.Dataset) -> None:
    assert fields.require_prompts(full, "frames.keypoints") == "frames.keypoints"
    assert fields.require_tracks(full, "detections") == "frames.detections"
    assert fields.require_captions(full, "events") == "events"
    assert fields.require_regions(full, "polylines") == "polylines"


@pytest.mark.parametrize(
    ("require", "field", "message"),
    [
        (fields.require_prompts, "frames.classes", "frames.detections, frames.detec"),
        (fields.require_prompts, "frames.number", "that holds boxes"),
        (fields.require_tracks, "keypoints", "fields that do: frames.detections"),
        (fields.require_captions, "classes", "fields that do: events"),
        (fields.require_regions, "absent", "no field 'absent'"),
    ],
)
def test_fields_that_dont_fit(
    full: fo.Dataset, require, field: str, message: str
) -> None:
    with pytest.raises(FieldError, match=message):
        require(full, field)


@pytest.mark.parametrize(
    ("output", "inputs"),
    [
        ("tracks", ["frames.prompts"]),
        ("frames.tracks", ["frames.prompts"]),
        ("captions", ["frames.tracks", "frames.prompts"]),
    ],
)
def test_outputs_that_can_be_written(output: str, inputs: list[str]) -> None:
    assert fields.require_output(output, *inputs) == output


@pytest.mark.parametrize(
    ("output", "inputs", "message"),
    [
        ("frames.prompts", ["frames.prompts"], "overwritten"),
        ("captions", ["other", "captions"], "overwritten"),
        ("prompts", ["frames.prompts"], "overwritten"),
        ("frames.prompts", ["prompts"], "overwritten"),
        ("", [], "no field name"),
        ("frames.", [], "no field name"),
        ("frames.a.b", [], "no field name"),
        ("two words", [], "no field name"),
        ("_hidden", [], "no field name"),
    ],
)
def test_outputs_that_cannot(output: str, inputs: list[str], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        fields.require_output(output, *inputs)


def test_declaring_twice_is_declaring_once(full: fo.Dataset) -> None:
    def schemas() -> tuple[list[str], list[str]]:
        return (
            sorted(full.get_field_schema(flat=True)),
            sorted(full.get_frame_field_schema(flat=True)),
        )

    schema.declare_tracks(full, "frames.tracks")
    schema.declare_captions(full, "captions")
    once = schemas()
    schema.declare_tracks(full, "tracks")
    schema.declare_captions(full, "captions")
    assert schemas() == once
    assert "captions.detections.dominant_color" in once[0]
    assert "tracks.detections.caption" in once[1]


@pytest.mark.parametrize("name", ["detections", "polylines", "keypoints", "detection"])
def test_regions_of_all_kinds_can_be_declared(full: fo.Dataset, name: str) -> None:
    schema.declare_regions(full, name)
    path = name if name == "detection" else f"{name}.{name}"
    assert f"{path}.caption_confidence" in full.get_field_schema(flat=True)


@pytest.mark.parametrize(
    ("declare", "field"),
    [
        (schema.declare_tracks, "number"),
        (schema.declare_tracks, "keypoints"),
        (schema.declare_captions, "detections"),
        (schema.declare_captions, "filepath"),
        (schema.declare_regions, "classes"),
    ],
)
def test_fields_of_another_type(full: fo.Dataset, declare, field: str) -> None:
    with pytest.raises(FieldError, match=r"another type|no field"):
        declare(full, field)
