from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import numpy as np
import pytest
from fiftyone import ViewField as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiftyone_regioncap.analysis.hierarchy import containment, write_hierarchy
from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.tracks import TrackWriter

HEIGHT, WIDTH = 40, 60


def box(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


SCENES = {
    "nothing": ({}, {}),
    "one": ({"a": box(0, 0, 9, 9)}, {"a": (None, 0)}),
    "three inside each other, in any order": (
        {"eye": box(5, 5, 7, 7), "body": box(0, 0, 30, 30), "head": box(4, 4, 12, 12)},
        {"eye": ("head", 2), "body": (None, 0), "head": ("body", 1)},
    ),
    "side by side": (
        {"left": box(0, 0, 10, 10), "right": box(20, 0, 32, 10)},
        {"left": (None, 0), "right": (None, 0)},
    ),
    "just enough inside": (
        {"whole": box(0, 0, 20, 20), "part": box(12, 0, 22, 10)},
        {"whole": (None, 0), "part": ("whole", 1)},
    ),
    "not enough inside": (
        {"whole": box(0, 0, 20, 20), "part": box(13, 0, 23, 10)},
        {"whole": (None, 0), "part": (None, 0)},
    ),
    "boxes overlap, masks do not": (
        {
            "frame": box(0, 0, 30, 30) & ~box(5, 5, 25, 25),
            "inside": box(6, 6, 20, 20),
        },
        {"frame": (None, 0), "inside": (None, 0)},
    ),
    # The first mask that holds 80 % of it, not the one that holds all of it.
    "the first that accepts": (
        {
            "large": box(0, 0, 20, 20),
            "exact": box(12, 0, 30, 20),
            "part": box(12, 0, 22, 10),
        },
        {"large": (None, 0), "exact": (None, 0), "part": ("large", 1)},
    ),
    "the same twice": (
        {"first": box(0, 0, 8, 8), "second": box(0, 0, 8, 8)},
        {"first": (None, 0), "second": ("first", 1)},
    ),
    "an empty one": (
        {"whole": box(0, 0, 8, 8), "empty": box(0, 0, 0, 0)},
        {"whole": (None, 0), "empty": (None, 0)},
    ),
}


@pytest.mark.parametrize(("masks", "expected"), SCENES.values(), ids=SCENES.keys())
def test_parts_and_wholes(
    masks: dict[str, np.ndarray], expected: dict[str, tuple[str | None, int]]
) -> None:
    places = containment(masks)
    assert list(places) == list(masks)
    assert {k: (p.parent, p.level) for k, p in places.items()} == expected


edges = st.tuples(
    st.integers(0, WIDTH - 1),
    st.integers(0, HEIGHT - 1),
    st.integers(1, WIDTH),
    st.integers(1, HEIGHT),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(edges, max_size=8), st.sampled_from([0.5, 0.8, 1.0]))
def test_what_holds_of_every_tree(
    boxes: list[tuple[int, int, int, int]], share: float
) -> None:
    masks = {n: box(*edges) for n, edges in enumerate(boxes)}
    for number, place in containment(masks, share=share).items():
        if place.parent is None:
            assert place.level == 0
            continue
        whole, part = masks[place.parent], masks[number]
        assert part.any()
        assert part.sum() <= whole.sum()
        assert (part & whole).sum() >= share * part.sum()
        assert place.level == containment(masks, share=share)[place.parent].level + 1


@pytest.fixture
def video(fiftyone_database: str) -> Iterator[fo.Dataset]:
    dataset = fo.Dataset()
    metadata = fo.VideoMetadata(
        frame_width=WIDTH, frame_height=HEIGHT, frame_rate=10.0, total_frame_count=3
    )
    dataset.add_sample(fo.Sample(filepath="/nowhere/video.mp4", metadata=metadata))
    yield dataset
    dataset.delete()


def test_tracks_get_their_parent_frame_by_frame(video: fo.Dataset) -> None:
    whole, part = box(0, 0, 20, 20), box(2, 2, 8, 8)
    scenes = [
        {7: whole, 3: part},
        {7: whole, 3: box(30, 30, 36, 36)},
        {3: part},
    ]
    with TrackWriter(video.first(), "frames.tracks") as writer:
        for number, masks in enumerate(scenes):
            objects = {key: ObjectMask(mask, 1.0) for key, mask in masks.items()}
            writer.write(FrameMasks(number, objects))
    for _ in range(2):  # the same again changes nothing
        assert write_hierarchy(video.first(), "frames.tracks") == 1
        found = {
            number: {d.index: (d.parent, d.level) for d in frame.tracks.detections}
            for number, frame in video.first().frames.items()
        }
        assert found == {
            1: {3: (7, 1), 7: (None, 0)},
            2: {3: (None, 0), 7: (None, 0)},
            3: {3: (None, 0)},
        }
    parts = video.filter_labels("frames.tracks", F("level") == 1)
    assert parts.count("frames.tracks.detections") == 1


def test_tracks_of_tools_that_have_instances_only(video: fo.Dataset) -> None:
    sample = video.first()
    sample.frames[1] = fo.Frame(
        tracks=fo.Detections(
            detections=[
                fo.Detection(
                    bounding_box=bounds,
                    mask=np.ones((4, 4), dtype=bool),
                    instance=fo.Instance(),
                )
                for bounds in ([0, 0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2])
            ]
        )
    )
    sample.save()
    assert write_hierarchy(video.first(), "frames.tracks") == 1
    whole, part = video.first().frames[1].tracks.detections
    assert (whole.level, part.level) == (0, 1)
    assert whole.parent is None and part.parent is not None


def test_regions_of_images_get_the_label_they_are_in(
    fiftyone_database: str, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    dataset = fo.Dataset()
    try:
        labels = [
            fo.Detection(bounding_box=bounds, mask=np.ones((5, 5), dtype=bool))
            for bounds in ([0.1, 0.1, 0.2, 0.2], [0, 0, 0.5, 0.5])
        ]
        plain = fo.Detection(bounding_box=[0.1, 0.1, 0.1, 0.1])
        dataset.add_sample(
            fo.Sample(
                filepath=str(path), things=fo.Detections(detections=[*labels, plain])
            )
        )
        assert write_hierarchy(dataset.first(), "things") == 1
        part, whole, boxed = dataset.first().things.detections
        assert (part.parent, part.level) == (whole.id, 1)
        assert not whole.has_field("parent") and whole.level == 0
        assert not boxed.has_field("parent"), (
            "a box alone says little of what is inside it"
        )
    finally:
        dataset.delete()


def test_fields_that_are_taken(video: fo.Dataset) -> None:
    with pytest.raises(FieldError, match="no field"):
        write_hierarchy(video.first(), "frames.nothing")
    with TrackWriter(video.first(), "frames.tracks") as writer:
        writer.write(FrameMasks(0, {1: ObjectMask(box(0, 0, 9, 9), 1.0)}))
    video.add_frame_field("tracks.detections.parent", fo.StringField)
    with pytest.raises(FieldError, match="another type"):
        write_hierarchy(video.first(), "frames.tracks")
