"""Regions of images are learned and compared as they are captioned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.training.data import gather
from fiftyone_regioncap.training.options import DataOptions

HEIGHT, WIDTH = 80, 120
DISC = np.hypot(*np.mgrid[-40:40, -40:80]) <= 20
"""The region: around column 40 of row 40."""

OPTIONS = DataOptions(captions=("regions",))


def box(**attributes: object) -> fo.Detections:
    around = [18 / WIDTH, 18 / HEIGHT, 44 / WIDTH, 44 / HEIGHT]
    label = fo.Detection(label="disc", bounding_box=around, **attributes)
    return fo.Detections(detections=[label])


def points(**attributes: object) -> fo.Keypoints:
    label = fo.Keypoint(label="disc", points=[(1 / 3, 0.5)], **attributes)
    return fo.Keypoints(keypoints=[label])


KINDS: dict[str, Callable[..., fo.Label]] = {"boxes": box, "points": points}


@pytest.fixture(params=KINDS)
def dataset(
    request: pytest.FixtureRequest, fiftyone_database: str, tmp_path: Path
) -> Iterator[fo.Dataset]:
    """Two images of a red disc on a gray wall, marked and described."""
    image = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    image[DISC] = (30, 30, 220)  # BGR
    made = fo.Dataset()
    for name in ("one.png", "two.png"):
        cv2.imwrite(str(tmp_path / name), image)
        regions = KINDS[request.param](
            caption="a red disc", caption_model="m", caption_confidence=0.4
        )
        made.add_sample(fo.Sample(filepath=str(tmp_path / name), regions=regions))
    made.add_dynamic_sample_fields()
    yield made
    made.delete()


def test_boxes_and_points_are_learned_as_masks(dataset: fo.Dataset) -> None:
    segmenter, _ = PROPAGATORS.load(ModelSpec("flow"))
    found = gather(dataset, OPTIONS, 1, segmenter)
    assert len(found.examples) == 2 and not found.failures
    for example in found.examples:
        mask = RLE(example.size, example.masks[0].encode()).decode()
        assert mask.any() and (mask & ~DISC).sum() < 0.05 * mask.sum()


@pytest.mark.parametrize("dataset", ["points"], indirect=True)
def test_without_a_segmenter_points_are_told(dataset: fo.Dataset) -> None:
    found = gather(dataset, OPTIONS, 1)
    assert not found.examples and found.left_out == {"could not be read": 2}
    for sample, said in zip(dataset, found.failures, strict=True):
        (label,) = sample["regions"].keypoints
        assert label.id in said and "segmenter" in said


@pytest.mark.parametrize("dataset", ["boxes"], indirect=True)
@pytest.mark.parametrize(("least", "learned"), [(0.3, 2), (0.5, 0)])
def test_the_confidence_is_that_of_the_caption(
    dataset: fo.Dataset, least: float, learned: int
) -> None:
    for sample in dataset:
        sample["regions"].detections[0].confidence = 0.9  # of the detector
        sample.save()
    options = DataOptions(captions=("regions",), min_confidence=least)
    assert len(gather(dataset, options, 0).examples) == learned


def test_new_captions_are_of_the_same_regions(dataset: fo.Dataset) -> None:
    compared = api.compare_captions(
        dataset,
        "regions",
        "again",
        captioner="measured",
        segmenter="flow",
        progress=False,
    )
    assert compared.ok and compared.found.pairs == 2
    dataset.reload()
    for sample in dataset:
        (label,) = getattr(sample["again"], sample["again"]._LABEL_LIST_FIELD)
        assert "red" in label.caption and not label.has_attribute("caption_error")
