from __future__ import annotations

import zlib

import fiftyone as fo
import numpy as np
import pytest
from bson import Binary
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import RLE, FrameMasks, ObjectMask, paste_mask
from fiftyone_regioncap.dataset.encoded import encode_crop, read_encoded
from fiftyone_regioncap.dataset.tracks import TrackWriter

HEIGHT, WIDTH = 40, 60


@st.composite
def crops(draw):
    """A crop somewhere in or around a small frame, often touching its edges."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    h, w = draw(st.integers(1, height + 2)), draw(st.integers(1, width + 2))
    top = draw(st.one_of(st.just(0), st.just(height - h), st.integers(-2, height)))
    left = draw(st.one_of(st.just(0), st.just(width - w), st.integers(-2, width)))
    bits = draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    return np.array(bits).reshape(h, w), left, top, height, width


@given(crops())
def test_a_crop_is_encoded_as_its_full_frame_is(case):
    crop, left, top, height, width = case
    box = (left, top, left + crop.shape[1], top + crop.shape[0])
    full = paste_mask(crop, box, height, width)
    rle, area = encode_crop(crop, left, top, height, width)
    assert rle == RLE.encode(full)
    assert area == full.sum()


def disc(x: float, y: float) -> np.ndarray:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return (columns - x) ** 2 + (rows - y) ** 2 < 36


@pytest.fixture(params=["inline", "disk"])
def tracks(request, dataset: fo.Dataset, tmp_path) -> fo.Dataset:
    with TrackWriter(
        dataset.first(),
        "tracks",
        labels={3: "dog"},
        mask_storage=request.param,
        output_dir=tmp_path,
    ) as writer:
        for frame in range(5):
            objects = {
                3: ObjectMask(disc(8 + 10 * frame, 20), 0.5),
                4: ObjectMask(None if frame == 2 else disc(59, 39), 0.25),
            }
            writer.write(FrameMasks(frame, objects))
    return dataset


def test_all_masks_are_read_once(tracks):
    found = dict(read_encoded(tracks.first(), "frames.tracks"))
    assert list(found) == [0, 1, 2, 3, 4]
    assert [list(labels) for labels in found.values()] == [
        [3, 4],
        [3, 4],
        [3],
        [3, 4],
        [3, 4],
    ]
    for frame, labels in found.items():
        expected = disc(8 + 10 * frame, 20)
        assert (labels[3].rle.decode() == expected).all()
        assert labels[3].area == expected.sum()
        assert (labels[3].label, labels[3].score) == ("dog", 0.5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"objects": {4}}, {0: [4], 1: [4], 3: [4], 4: [4]}),
        ({"frames": [3, 1]}, {1: [3, 4], 3: [3, 4]}),
        ({"support": (1, 2)}, {1: [3, 4], 2: [3]}),
        ({"frames": [2], "objects": {4}}, {}),
    ],
)
def test_only_what_is_wanted_is_read(tracks, options, expected):
    found = read_encoded(tracks.first(), "tracks", **options)
    assert {frame: list(labels) for frame, labels in found} == expected


def test_a_box_without_a_mask_is_filled(dataset):
    sample = dataset.first()
    box = [6 / WIDTH, 4 / HEIGHT, 10 / WIDTH, 5 / HEIGHT]
    label = fo.Detection(label="cat", bounding_box=box, index=1)
    sample.frames[1]["boxes"] = fo.Detections(detections=[label])
    sample.save()
    ((_, labels),) = read_encoded(sample, "frames.boxes")
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[4:9, 6:16] = True
    assert (labels[1].rle.decode() == expected).all() and labels[1].area == 50


def test_a_box_far_larger_than_its_frame_is_the_frame(dataset):
    sample = dataset.first()
    label = fo.Detection(bounding_box=[-1e5, -1e5, 2e5, 2e5], index=1)
    sample.frames[1]["boxes"] = fo.Detections(detections=[label])
    sample.save()
    ((_, labels),) = read_encoded(sample, "frames.boxes")
    assert labels[1].area == HEIGHT * WIDTH


@pytest.mark.parametrize(
    "mask",
    [b"no zlib", zlib.compress(b"\x93NUMPY\x01\x00no")],
    ids=["no zlib", "no header"],
)
def test_a_damaged_mask_is_named(tracks, mask):
    sample = tracks.first()

    def put(value) -> None:
        tracks._frame_collection.update_one(
            {"frame_number": 2}, {"$set": {"tracks.detections.0.mask": value}}
        )

    put(Binary(mask))
    try:
        with pytest.raises(FieldError, match="object 3 on frame 2"):
            list(read_encoded(sample, "tracks"))
    finally:
        put(None)  # FiftyOne can't load it either
