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
