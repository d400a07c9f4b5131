from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import numpy as np
import pytest
from fiftyone import ViewField as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.core.errors import FieldError, PromptError
from fiftyone_regioncap.dataset.prompts import PromptSet, read_prompts

MakeDataset = Callable[..., fo.Dataset]
QUARTER = [0.25, 0.5, 0.5, 0.25]  # of 60 x 40: x 15 to 45, y 20 to 30


def put(sample: fo.Sample, labels: dict[int, list[fo.Label]]) -> None:
    """Gives the sample prompts by frame number."""
    kinds = {
        fo.Detection: (fo.Detections, "detections"),
        fo.Keypoint: (fo.Keypoints, "keypoints"),
        fo.Polyline: (fo.Polylines, "polylines"),
    }
    for number, items in labels.items():
        kind, name = kinds[type(items[0])]
        sample.frames[number] = fo.Frame(prompts=kind(**{name: items}))
    sample.save()


def read(sample: fo.Sample, field: str = "frames.prompts", **options) -> PromptSet:
    options = {"height": 40, "width": 60, "frame_count": 10, **options}
    return read_prompts(sample, field, **options)


def box(**attributes: object) -> fo.Detection:
    return fo.Detection(bounding_box=QUARTER, **attributes)


def test_boxes(dataset: fo.Dataset) -> None:
    put(dataset.first(), {4: [box(label="dog", index=7)]})
    found = read(dataset.first())
    (prompt,) = found.prompts
    assert (prompt.object_id, prompt.frame, prompt.label) == (7, 3, "dog")
    assert prompt.box == (15, 20, 45, 30)
    assert prompt.mask is None and prompt.points is None
    assert (found.labels, found.instances) == ({7: "dog"}, {})


@pytest.mark.parametrize("storage", ["inline", "disk"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("bool", "mask"),
        ("0 and 255", "mask"),
        ("empty", "box"),  # an empty mask says nothing, its box does
        ("half the size", "stretched"),
    ],
)
def test_masks(
    dataset: fo.Dataset, tmp_path: Path, storage: str, given: str, expected: str
) -> None:
    mask = np.zeros((10, 30), dtype=bool)
    if given != "empty":
        mask[2:6, 4:20] = True
    stored = {
        "0 and 255": mask.astype(np.uint8) * 255,
        "half the size": mask[::2, ::2],
    }.get(given, mask)
    if storage == "disk":
        path = tmp_path / "mask.png"
        cv2.imwrite(str(path), stored.astype(np.uint8))
        label = box(mask_path=str(path))
    else:
        label = box(mask=stored)
    put(dataset.first(), {1: [label]})
    (prompt,) = read(dataset.first()).prompts
    if expected == "box":
        assert prompt.mask is None and prompt.box == (15, 20, 45, 30)
    else:
        full = np.zeros((40, 60), dtype=bool)
        full[22:26, 19:35] = True
        np.testing.assert_array_equal(prompt.mask, full)
        assert prompt.box is None


def test_a_mask_that_is_gone(dataset: fo.Dataset) -> None:
    put(dataset.first(), {1: [box(mask_path="/nowhere/mask.png")]})
    with pytest.raises(FieldError, match="restore the file"):
        read(dataset.first())


def test_points_with_signs(dataset: fo.Dataset) -> None:
    nan = float("nan")
    label = fo.Keypoint(
        points=[(0.5, 0.5), (nan, nan), (0.25, 0.75)], index=2, sam_labels=[1, 1, 0]
    )
    put(dataset.first(), {2: [label]})
    (prompt,) = read(dataset.first()).prompts
    assert prompt.points.tolist() == [[30, 20], [15, 30]]
    assert prompt.point_signs.tolist() == [True, False]


def test_points_of_one_object_on_one_frame_are_one_prompt(dataset: fo.Dataset) -> None:
    on = fo.Keypoint(points=[(0.5, 0.5)], index=2, label="dog")
    off = fo.Keypoint(points=[(0.1, 0.1)], index=2, sam_labels=[0])
    put(dataset.first(), {1: [off, on], 5: [on]})
    first, later = read(dataset.first()).prompts
    assert first.point_signs.tolist() == [False, True]
    assert first.label == "dog"
    assert later.point_signs.tolist() == [True]


@pytest.mark.parametrize(
    ("polyline", "expected"),
    [
        ({"filled": True}, "mask"),
        ({"closed": True}, "mask"),
        ({}, "points"),  # an open line is a scribble on the object
    ],
)
def test_polylines(dataset: fo.Dataset, polyline: dict, expected: str) -> None:
    corners = [(0.25, 0.5), (0.75, 0.5), (0.75, 0.75), (0.25, 0.75)]
    put(dataset.first(), {1: [fo.Polyline(points=[corners], **polyline)]})
    (prompt,) = read(dataset.first()).prompts
    if expected == "mask":
        full = np.zeros((40, 60), dtype=bool)
        full[20:30, 15:45] = True
        np.testing.assert_array_equal(prompt.mask, full)
    else:
        assert prompt.points.tolist() == [[15, 20], [45, 20], [45, 30], [15, 30]]


@pytest.mark.parametrize(
    ("labels", "objects"),
    [
        # (frame number, index, instance) of each label; object ids by label
        ([(1, 5, None), (9, 5, None)], [5, 5]),
        ([(1, None, None), (1, None, None), (4, None, None)], [1, 2, 3]),
        ([(1, None, None), (2, 1, None), (3, None, None)], [2, 1, 3]),
        ([(1, None, "a"), (7, None, "a"), (7, None, "b")], [1, 1, 2]),
        ([(1, None, "a"), (7, 3, "a")], [3, 3]),  # an index that comes later counts
        ([(1, 1, "a"), (2, 2, "a")], [1, 2]),  # an index says more than an instance
        ([(1, 0, None), (2, None, None)], [0, 1]),
    ],
)
def test_which_labels_are_of_one_object(
    dataset: fo.Dataset,
    labels: list[tuple[int, int | None, str | None]],
    objects: list[int],
) -> None:
    instances = {name: fo.Instance() for *_, name in labels if name}
    frames: dict[int, list[fo.Detection]] = {}
    for number, index, name in labels:
        frames.setdefault(number, []).append(
            box(index=index, instance=instances.get(name))
        )
    put(dataset.first(), frames)
    found = read(dataset.first())
    assert [prompt.object_id for prompt in found.prompts] == objects
    linked = {
        object_id: instances[name].id
        for (*_, name), object_id in zip(labels, objects, strict=True)
        if name
    }
    assert found.instances == linked


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(numbers=st.sets(st.integers(1, 10_000), min_size=1, max_size=8))
def test_frame_numbers_count_and_not_their_rank(
    make_dataset: MakeDataset, numbers: set[int]
) -> None:
    dataset = make_dataset(frames=10_000)
    put(dataset.first(), {number: [box(index=number)] for number in numbers})
    found = read(dataset.first(), frame_count=10_000)
    assert [prompt.frame for prompt in found.prompts] == sorted(n - 1 for n in numbers)
    assert all(prompt.object_id == prompt.frame + 1 for prompt in found.prompts)


@pytest.mark.parametrize(
    "own",
    [{"index": 1}, {"instance": fo.Instance()}, {}],
    ids=["by index", "by instance", "by nothing"],
)
def test_copies_that_the_app_holds_are_no_prompts(
    dataset: fo.Dataset, own: dict[str, Any]
) -> None:
    """FiftyOne's Annotate tab repeats a drawn box, with keyframe=False."""
    put(
        dataset.first(),
        {n: [box(keyframe=n == 3, **own), box(index=9)] for n in range(1, 6)},
    )
    found = [p for p in read(dataset.first()).prompts if p.object_id != 9]
    assert [prompt.frame for prompt in found] == [2]


def test_without_keyframes_every_label_is_a_prompt(dataset: fo.Dataset) -> None:
    put(dataset.first(), {n: [box(index=1, keyframe=False)] for n in range(1, 6)})
    assert len(read(dataset.first()).prompts) == 5


def test_a_sample_level_field_is_about_the_first_frame(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    sample["start"] = fo.Detections(detections=[box(label="cat")])
    sample["single"] = box(index=4)
    sample.save()
    (prompt,) = read(sample, "start").prompts
    assert (prompt.frame, prompt.label, prompt.object_id) == (0, "cat", 1)
    (prompt,) = read(sample, "single").prompts
    assert (prompt.frame, prompt.object_id) == (0, 4)


def test_filters_of_a_view_hold(dataset: fo.Dataset) -> None:
    put(dataset.first(), {1: [box(label="dog", index=1), box(label="cat", index=2)]})
    view = dataset.filter_labels("frames.prompts", F("label") == "cat")
    (prompt,) = read(view.first()).prompts
    assert prompt.object_id == 2


def test_a_clip_has_the_prompts_of_its_frames(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    put(sample, {number: [box(index=1)] for number in (1, 4, 8)})
    sample["events"] = fo.TemporalDetections(
        detections=[fo.TemporalDetection(label="a", support=[3, 6])]
    )
    sample.save()
    (prompt,) = read(dataset.to_clips("events").first()).prompts
    assert prompt.frame == 3


def test_no_prompts(dataset: fo.Dataset) -> None:
    put(dataset.first(), {1: [fo.Keypoint(points=[(float("nan"), 0.5)])]})
    assert read(dataset.first()).prompts == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({11: [box()]}, "frames 1 to 10"),
        ({1: [fo.Detection(bounding_box=[0.5, 0.5, 0, 0])]}, "no area"),
        ({1: [fo.Detection(bounding_box=[2, 2, 1, 1])]}, "outside"),
        ({1: [fo.Keypoint(points=[(1.5, 0.5)])]}, "outside"),
        ({1: [fo.Keypoint(points=[(0.5, 0.5)], sam_labels=[0])]}, "one on it"),
        (
            {
                1: [
                    fo.Keypoint(points=[(0.5, 0.5)], index=1, label="dog"),
                    fo.Keypoint(points=[(0.2, 0.5)], index=1, label="cat"),
                ]
            },
            "'dog' and 'cat'",
        ),
    ],
)
def test_prompts_that_dont_fit(
    dataset: fo.Dataset, labels: dict[int, list[fo.Label]], message: str
) -> None:
    put(dataset.first(), labels)
    with pytest.raises(PromptError, match=message):
        read(dataset.first())


def test_signs_that_dont_fit(dataset: fo.Dataset) -> None:
    put(dataset.first(), {1: [fo.Keypoint(points=[(0.5, 0.5)], sam_labels=[1, 0])]})
    with pytest.raises(FieldError, match="1 points but 2 signs"):
        read(dataset.first())


@pytest.mark.parametrize("field", ["frames.absent", "prompts", "tags"])
def test_fields_that_hold_no_prompts(dataset: fo.Dataset, field: str) -> None:
    put(dataset.first(), {1: [box()]})
    with pytest.raises(FieldError, match=r"fields that do: frames\.prompts"):
        read(dataset.first(), field)
