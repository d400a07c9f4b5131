"""Images and videos of one scene are never on both sides of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.core.collections as foco
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.schema import declare_tracks
from fiftyone_regioncap.training.data import gather, split
from fiftyone_regioncap.training.options import DataOptions

SCENES, IMAGES = 3, 6
OPTIONS = DataOptions(captions=("regions",))


def grouped(dataset: fo.Dataset) -> foco.SampleCollection:
    return dataset.group_by("scene", order_by="number")


def of_our_field(dataset: fo.Dataset) -> foco.SampleCollection:
    dataset.clone_sample_field("scene", "sequence")
    return dataset


def of_an_object(dataset: fo.Dataset) -> foco.SampleCollection:
    """Each image has the object of the one before, and one of its own."""
    for name in dataset.distinct("scene"):
        shared = [fo.Instance() for _ in range(IMAGES + 1)]
        for sample in dataset.match(fo.ViewField("scene") == name).sort_by("number"):
            one, other = sample["regions"].detections
            one.instance, other.instance = shared[sample.number : sample.number + 2]
            sample.save()
    return dataset


WAYS = {
    "grouped": grouped,
    "sequence field": of_our_field,
    "shared object": of_an_object,
}


@pytest.fixture
def dataset(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    """Images of three scenes, in any order, with two described regions each."""
    made = fo.Dataset()
    samples = []
    for number in range(IMAGES):
        for scene in range(SCENES):
            path = tmp_path / f"{number}-{scene}.png"
            cv2.imwrite(str(path), np.full((40, 60, 3), 40 * scene, dtype=np.uint8))
            labels = [
                fo.Detection(label="a", bounding_box=[x, 0.2, 0.3, 0.3], caption="one")
                for x in (0.1, 0.5)
            ]
            regions = fo.Detections(detections=labels)
            samples.append(
                fo.Sample(str(path), scene=f"s{scene}", number=number, regions=regions)
            )
    made.add_samples(samples)
    made.add_dynamic_sample_fields()
    yield made
    made.delete()


@pytest.mark.parametrize("way", WAYS)
def test_no_sequence_is_on_both_sides(dataset: fo.Dataset, way: str) -> None:
    make: Callable[[fo.Dataset], foco.SampleCollection] = WAYS[way]
    scenes = dict(zip(*dataset.values(["filepath", "scene"]), strict=True))
    found = gather(make(dataset), OPTIONS, 1)
    assert len(found.examples) == 2 * SCENES * IMAGES and not found.failures
    for seed in range(3):
        sides = split(found, 0.4, seed)
        learned, held_out = ({scenes[one.path] for one in side} for side in sides)
        assert len(held_out) == 1 and len(learned) == 2
        assert learned.isdisjoint(held_out)


def test_captions_of_sequences_are_compared(dataset: fo.Dataset) -> None:
    view = grouped(dataset).limit(2)
    compared = api.compare_captions(
        view, "regions", "again", captioner="measured", segmenter=None, progress=False
    )
    assert compared.ok and compared.found.pairs == 2 * 2 * IMAGES


def test_no_group_is_on_both_sides(fiftyone_database: str) -> None:
    dataset = fo.Dataset()
    dataset.add_group_field("group", default="left")
    for scene in range(SCENES):
        group = fo.Group()
        for side in ("left", "right"):  # of two cameras
            path = f"/nowhere/{side}/{scene}.mp4"
            dataset.add_sample(fo.Sample(path, group=group.element(side)))
    view = dataset.select_group_slices()
    declare_tracks(dataset, "tracks")
    for sample in view:
        write_captions(sample, "captions", [CaptionRecord(1, (0, 1), caption="one")])
    found = gather(view, DataOptions(review=("unreviewed",)), 0)
    assert len(found.examples) == 2 * SCENES
    learned, held_out = split(found, 0.4, 0)
    assert len({Path(one.path).name for one in held_out}) == 1
    assert (len(learned), len(held_out)) == (4, 2)
    dataset.delete()
