from __future__ import annotations

import re
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
    found = read(dataset.first())
    assert found.prompts == found.problems == []


NAN = float("nan")
DIAGONAL = [(0.1, 0.1), (0.9, 0.9)]
BAD_LABELS = {
    "past the end": (11, box(), "frames 1 to 10"),
    "no area": (1, fo.Detection(bounding_box=[0.5, 0.5, 0, 0]), "no area"),
    "outside": (1, fo.Detection(bounding_box=[2, 2, 1, 1]), "outside"),
    "NaN": (1, fo.Detection(bounding_box=[NAN, 0.5, 0.1, 0.1]), "not finite"),
    "NaN with a mask": (
        1,
        fo.Detection(bounding_box=[NAN, 0, 1, 1], mask=np.ones((2, 2), bool)),
        "not finite",
    ),
    "no box": (1, fo.Detection(label="dog"), "has no box"),
    "no points": (1, fo.Keypoint(label="dog"), "has no point"),
    "no vertices": (1, fo.Polyline(label="dog"), "has no vertex"),
    "a point outside": (1, fo.Keypoint(points=[(1.5, 0.5)]), "outside"),
    "a mask that is gone": (1, box(mask_path="/nowhere/mask.png"), "restore the file"),
    "a polygon of two points": (
        1,
        fo.Polyline(points=[DIAGONAL], closed=True),
        "three vertices",
    ),
    "more signs than points": (
        1,
        fo.Keypoint(points=[(0.5, 0.5)], sam_labels=[1, 0]),
        "1 points but 2 signs",
    ),
    "a sign of -1": (1, fo.Keypoint(points=[(0.5, 0.5)], sam_labels=[-1]), "-1 in"),
    "signs of text": (
        1,
        fo.Keypoint(points=DIAGONAL, sam_labels=["positive", "negative"]),
        "'positive' in 'sam_labels'; give 1",
    ),
    "only off, of nobody": (
        1,
        fo.Keypoint(points=[(0.5, 0.5)], sam_labels=[0], index=9),
        "one on it",
    ),
    "a box off the object": (1, box(sam_label=False), "only points can be off"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_a_bad_label_costs_only_itself(dataset: fo.Dataset, case: str) -> None:
    number, bad, message = BAD_LABELS[case]
    good = {
        fo.Detection: box(index=3),
        fo.Keypoint: fo.Keypoint(points=[(0.5, 0.5)], index=3),
        fo.Polyline: fo.Polyline(points=[DIAGONAL], index=3),
    }[type(bad)]
    put(dataset.first(), {2: [good], number: [bad]})
    found = read(dataset.first())
    assert [(prompt.object_id, prompt.frame) for prompt in found.prompts] == [(3, 1)]
    (problem,) = found.problems
    assert message in problem
    assert f"on frame {number}" in problem and f"label {bad.id}" in problem


@pytest.mark.parametrize("case", BAD_LABELS)
def test_nothing_but_a_bad_label(dataset: fo.Dataset, case: str) -> None:
    number, bad, message = BAD_LABELS[case]
    put(dataset.first(), {number: [bad]})
    with pytest.raises((PromptError, FieldError), match=re.escape(message)):
        read(dataset.first())


def test_points_on_the_edges(dataset: fo.Dataset) -> None:
    put(dataset.first(), {1: [fo.Keypoint(points=[(1.0, 1.0), (0.0, 0.0)])]})
    (prompt,) = read(dataset.first()).prompts
    assert prompt.points.tolist() == [[59.5, 39.5], [0, 0]]


def test_signs_that_nobody_gave(dataset: fo.Dataset) -> None:
    """The App writes an empty list where the attribute is declared."""
    put(dataset.first(), {1: [fo.Keypoint(points=[(0.5, 0.5)], sam_labels=[])]})
    (prompt,) = read(dataset.first()).prompts
    assert prompt.point_signs.tolist() == [True]


def click(sign: int | None = None, **attributes: object) -> fo.Keypoint:
    signs = {} if sign is None else {"sam_labels": [sign]}
    return fo.Keypoint(points=[(0.5, 0.5)], **signs, **attributes)


ONE, OTHER = fo.Instance(), fo.Instance()


@pytest.mark.parametrize(
    ("boxes", "clicked", "about"),
    [
        ([box(index=7)], click(), 7),
        ([box(index=7)], click(index=7), 7),
        ([box(index=7), box(index=8)], click(index=8), 8),
        ([box(instance=ONE), box(instance=OTHER)], click(instance=OTHER), 2),
        ([box(label="dog"), box(label="cat")], click(label="cat"), 2),
        ([box(label="dog"), box(label="dog")], click(index=2), 2),
        (
            [box(label="car", index=1), box(label="dog", index=1)],
            click(label="dog", index=1),
            2,
        ),
        ([box(label="dog"), box(label="dog")], click(label="dog"), None),
        ([box(index=7)], click(index=8), None),
        ([box(index=7)], click(label="cat"), None),
    ],
    ids=[
        "the only object",
        "by index",
        "by index of two",
        "by instance",
        "by label",
        "by the number of its track",
        "by label and index",
        "of two of one label",
        "of nobody's index",
        "of nobody's label",
    ],
)
def test_points_off_from_a_field_of_their_own(
    dataset: fo.Dataset, boxes: list[fo.Label], clicked: fo.Label, about: int | None
) -> None:
    sample = dataset.first()
    put(sample, {3: boxes})
    sample.frames[3]["off"] = fo.Keypoints(keypoints=[clicked])
    sample.frames[4]["off"] = fo.Keypoints(keypoints=[clicked])
    sample.save()
    found = read(dataset.first(), negative="frames.off")
    points = [p for p in found.prompts if p.points is not None]
    assert len(found.prompts) == len(boxes) + len(points)
    if about is None:
        assert not points and len(found.problems) == 2
        assert "which object" in found.problems[0]
    else:
        assert [(p.object_id, p.frame) for p in points] == [(about, 2), (about, 3)]
        assert all(p.negative_only for p in points) and not found.problems


def test_points_on_an_object_beside_its_box(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    put(sample, {1: [box(index=2)]})
    sample.frames[1]["clicks"] = fo.Keypoints(
        keypoints=[click(1, index=2), click(0, index=2)]
    )
    sample.save()
    found = read(dataset.first(), negative="frames.clicks")
    assert [prompt.object_id for prompt in found.prompts] == [2, 2]
    assert found.prompts[1].point_signs.tolist() == [True, False]


def test_a_click_off_the_only_object_needs_no_index(dataset: fo.Dataset) -> None:
    put(dataset.first(), {2: [click(0)], 5: [click(label="dog")]})
    found = read(dataset.first())
    assert [(p.object_id, p.frame) for p in found.prompts] == [(1, 1), (1, 4)]
    assert found.labels == {1: "dog"} and not found.problems


def test_points_off_an_object_that_a_view_hides(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    put(sample, {1: [box(label="dog"), box(label="cat")]})
    sample.frames[1]["off"] = fo.Keypoints(keypoints=[click(label="cat")])
    sample.save()
    view = dataset.filter_labels("frames.prompts", F("label") == "dog")
    found = read(view.first(), negative="frames.off")
    assert [prompt.object_id for prompt in found.prompts] == [1]
    assert not found.problems


@pytest.mark.parametrize("field", ["frames.absent", "prompts", "tags"])
def test_fields_that_hold_no_prompts(dataset: fo.Dataset, field: str) -> None:
    put(dataset.first(), {1: [box()]})
    with pytest.raises(FieldError, match=r"fields that do: frames\.prompts"):
        read(dataset.first(), field)
