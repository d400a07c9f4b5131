"""Captions of regions of images: of views, patches and frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
import pytest
from fiftyone import ViewField as F

from fiftyone_regioncap import api
from fiftyone_regioncap.captioning.measured import MeasuredCaptioner
from fiftyone_regioncap.dataset.clips import region_masks
from fiftyone_regioncap.dataset.geometry import Shape
from fiftyone_regioncap.dataset.leases import Leases
from fiftyone_regioncap.dataset.regions import ImageRegion
from fiftyone_regioncap.jobs.executors import working

BOXES = {"red": [0.0, 0.0, 0.5, 1.0], "blue": [0.5, 0.0, 0.5, 1.0]}


def regions() -> fo.Detections:
    return fo.Detections(
        detections=[
            fo.Detection(label=label, bounding_box=box) for label, box in BOXES.items()
        ]
    )


@pytest.fixture
def dataset(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    """Two images, red on the left and blue on the right."""
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[:, :30], image[:, 30:] = (30, 30, 220), (220, 30, 30)  # BGR
    dataset = fo.Dataset()
    for name in ("one.png", "two.png"):
        cv2.imwrite(str(tmp_path / name), image)
        dataset.add_sample(fo.Sample(filepath=str(tmp_path / name), regions=regions()))
    yield dataset
    dataset.delete()


def caption(samples: fo.core.collections.SampleCollection) -> None:
    summary = api.caption_regions(
        samples, "regions", captioner=MeasuredCaptioner(), progress=False
    )
    assert summary.ok and summary.captions, summary


def captions(labels: fo.Detections) -> dict[str, str | None]:
    return {
        label.label: label["caption"] if label.has_attribute("caption") else None
        for label in labels.detections
    }


def test_images_are_claimed_together(dataset: fo.Dataset, monkeypatch) -> None:
    claimed: list[int] = []
    claim = Leases.claim_each

    def counted(self: Leases, works):
        claimed.append(len(works))
        return claim(self, works)

    monkeypatch.setattr(Leases, "claim_each", counted)
    monkeypatch.setattr(working, "_SHARES", 1)
    caption(dataset)
    assert claimed == [2]
    assert dataset.values("regions_status") == ["complete"] * 2


def test_only_the_regions_that_a_view_shows_are_captioned(dataset: fo.Dataset) -> None:
    caption(dataset.filter_labels("regions", F("label") == "red"))
    dataset.reload()
    for sample in dataset:
        found = captions(sample.regions)
        assert "red" in found["red"] and found["blue"] is None


def test_captions_of_patches_are_those_of_their_samples(dataset: fo.Dataset) -> None:
    patches = dataset.to_patches("regions")
    shown = patches.match(F("regions.label") == "blue").limit(1)
    caption(shown)
    dataset.reload()
    one, two = (captions(sample.regions) for sample in dataset)
    assert one["red"] is None and "blue" in one["blue"]
    assert set(two.values()) == {None}
    assert "blue" in dataset.to_patches("regions").values("regions.caption")[1]


@pytest.mark.parametrize("patches", [False, True], ids=["frames", "patches of frames"])
def test_captions_of_frames_are_those_of_their_video(
    dataset: fo.Dataset, videos: list[Path], tmp_path: Path, patches: bool
) -> None:
    video = fo.Dataset()
    sample = fo.Sample(filepath=str(videos[0]))
    for number in (1, 2):
        sample.frames[number] = fo.Frame(
            filepath=dataset.values("filepath")[number - 1], regions=regions()
        )
    video.add_sample(sample)
    frames = video.to_frames(sample_frames=False)
    caption(frames.to_patches("regions") if patches else frames)
    video.reload()
    for number in (1, 2):
        found = captions(video.first().frames[number].regions)
        assert all(label in text for label, text in found.items())
    video.delete()


BAD = {
    "no number": fo.Detection(bounding_box=[0.1, float("nan"), 0.2, 0.2]),
    "no area": fo.Detection(bounding_box=[0.1, 0.1, 0.0, 0.2]),
    "outside": fo.Detection(bounding_box=[1.5, 0.1, 0.2, 0.2]),
    "no mask file": fo.Detection(
        bounding_box=[0.1, 0.1, 0.2, 0.2], mask_path="/no/where.png"
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_region_costs_only_itself(dataset: fo.Dataset, bad: str) -> None:
    sample = dataset.first()
    sample.regions.detections.append(BAD[bad].copy())
    sample.save()
    label_id = sample.regions.detections[-1].id
    summary = api.caption_regions(
        dataset, "regions", captioner=MeasuredCaptioner(), progress=False
    )
    assert (summary.captions, summary.caption_errors) == (5, 1)
    dataset.reload()
    *good, failed = dataset.first().regions.detections
    assert all(label.label in label.caption for label in good)
    assert not failed.has_attribute("caption") and label_id in failed["caption_error"]


def test_points_without_a_segmenter_cost_only_themselves() -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    points = Shape(points=np.array([[20.0, 20.0]]), point_signs=np.array([True]))
    regions = [ImageRegion("a", points), ImageRegion("b", Shape(box=(5, 5, 20, 20)))]
    masks, problems = region_masks(image, regions, None)
    assert [mask.sum() for mask in masks] == [0, 225]
    assert list(problems) == ["a"] and "segmenter" in problems["a"]
