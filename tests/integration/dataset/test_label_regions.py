from __future__ import annotations

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import Caption
from fiftyone_regioncap.dataset.regions import (
    read_regions,
    region_records,
    write_region_captions,
)

TRIANGLE = [[(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)]]


def put(images: fo.Dataset, label: fo.Label) -> fo.Sample:
    sample = images.first()
    sample["regions"] = label
    sample.save()
    return sample


def read(sample: fo.Sample) -> list:
    return read_regions(sample, "regions", height=40, width=60)


def test_detections_with_and_without_masks(images: fo.Dataset) -> None:
    masked = fo.Detection(
        bounding_box=[0, 0, 0.5, 0.5], mask=np.ones((20, 30), dtype=bool), label="dog"
    )
    plain = fo.Detection(bounding_box=[0.5, 0.5, 0.5, 0.5])
    sample = put(images, fo.Detections(detections=[masked, plain]))
    one, two = read(sample)
    assert (one.id, one.label) == (masked.id, "dog")
    assert one.shape.mask.sum() == 600
    assert two.shape.mask is None and two.shape.box == (30, 20, 60, 40)


@pytest.mark.parametrize(
    ("label", "has"),
    [
        (fo.Polylines(polylines=[fo.Polyline(points=TRIANGLE, filled=True)]), "mask"),
        (fo.Polyline(points=TRIANGLE, closed=True), "mask"),
        (fo.Keypoints(keypoints=[fo.Keypoint(points=[(0.5, 0.5)])]), "points"),
        (fo.Keypoint(points=[(0.5, 0.5)]), "points"),
        (fo.Detection(bounding_box=[0, 0, 1, 1]), "box"),
    ],
)
def test_regions_of_all_kinds(images: fo.Dataset, label: fo.Label, has: str) -> None:
    sample = put(images, label)
    (region,) = read(sample)
    assert getattr(region.shape, has) is not None
    caption = Caption(text="It is red.", confidence=0.5, tags=(("red", 0.9),))
    for _ in range(2):
        write_region_captions(sample, "regions", {region.id: caption}, model="m")
        images.reload()
        stored = images.first()["regions"]
        name = getattr(stored, "_LABEL_LIST_FIELD", None)
        label = getattr(stored, name)[0] if name else stored
        assert (label.caption, label.caption_confidence) == ("It is red.", 0.5)
        assert (label.caption_model, label.tags) == ("m", ["red"])
    assert read(images.first())[0].caption == "It is red."


def test_other_regions_and_a_persons_tags_stay(images: fo.Dataset) -> None:
    box = [0, 0, 1, 1]
    one, two = (fo.Detection(bounding_box=box, tags=["mine"]) for _ in range(2))
    sample = put(images, fo.Detections(detections=[one, two]))
    captions = {two.id: Caption(error="the mask is empty", tags=(("red", 1.0),))}
    write_region_captions(sample, "regions", captions, model="m")
    images.reload()
    one, two = images.first().regions.detections
    assert one.tags == ["mine"] and not one.has_attribute("caption")
    assert two.tags == ["mine", "red"]
    assert two.caption_error == "the mask is empty"
    assert not two.has_attribute("caption")


def test_every_tag_of_a_region_has_its_own_score(images: fo.Dataset) -> None:
    """Whoever tags first, and however often the region is described."""

    def described(*tags: tuple[str, float]) -> dict[str, float]:
        (label,) = images.first().regions.detections
        caption = Caption("It is red.", tags=tags)
        args = images.first(), "regions", {label.id: caption}
        write_region_captions(*args, model="m")
        images.reload()
        (label,) = images.first().regions.detections
        assert len(label.tags) == len(label.caption_tag_scores)
        (record,) = region_records(images.first(), "regions").values()
        assert record.confidence is None  # the label's own is its detector's
        assert record.tags == tuple(
            zip(label.tags, label.caption_tag_scores, strict=True)
        )
        return dict(record.tags)

    box = [0, 0, 1, 1]
    one = fo.Detection(bounding_box=box, tags=["mine"], confidence=0.4)
    put(images, fo.Detections(detections=[one]))
    assert described(("red", 0.9)) == {"mine": 1.0, "red": 0.9}
    assert described(("big", 0.3), ("red", 0.8)) == {"mine": 1, "red": 0.8, "big": 0.3}
    images.tag_labels("late", label_fields="regions")
    assert described(("red", 0.7)) == {"mine": 1, "red": 0.7, "big": 1, "late": 1}
    assert described(("mine", 0.2))["mine"] == 0.2


def test_nothing_there(images: fo.Dataset) -> None:
    images.add_sample_field(
        "regions", fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections
    )
    assert read(images.first()) == []
    write_region_captions(images.first(), "regions", {}, model="m")


def test_a_field_that_is_not_there(images: fo.Dataset) -> None:
    with pytest.raises(FieldError, match="no field 'regions'"):
        read(images.first())
