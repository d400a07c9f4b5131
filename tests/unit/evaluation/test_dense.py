from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.evaluation.dense import (
    Detection,
    ImageMatches,
    Match,
    box_iou,
    dense_map,
    edges_iou,
    match,
    merged,
    support_iou,
)


def test_each_caption_belongs_to_the_reference_it_overlaps_most():
    ious = np.array([[0.6, 0.2], [0.7, 0.1], [0.0, 0.0]])
    found = match(["a", "b", "c"], ["r", "s"], [0.5, 0.9, 0.7], ious)
    assert found == [
        Match("b", "r", 0.7, True, 0.9),
        Match("c", None, 0.0, False, 0.7),
        Match("a", "r", 0.6, False, 0.5),  # b, more confident, has taken r
    ]
    assert match(["a"], [], [0.5], np.zeros((1, 0)))[0].reference is None


def test_map_by_hand():
    """Three captions of four references: right, wrong, right.

    Precision is 1 up to a recall of 1/4 and 2/3 up to 1/2, then 0: of the 100 recalls
    0, 0.01, ... 0.99, the first 26 have 1, and the next 25 have 2/3.
    """
    matches = [
        Match("second", "s", 0.2, True, 0.8),
        Match("third", "t", 0.9, True, 0.7),
        Match("first", "r", 0.5, True, 0.9),
    ]
    meteors = [0.9, 0.12, 0.3]
    result = dense_map(
        matches, meteors, 4, iou_thresholds=(0.3, 0.6), meteor_thresholds=(0.0, 0.2)
    )
    both = (26 + 25 * 2 / 3) / 100
    only_first = 26 / 100
    only_third = 26 * (1 / 3) / 100
    assert result.by_threshold == pytest.approx(
        {
            (0.3, 0.0): both,
            (0.3, 0.2): only_first,
            (0.6, 0.0): only_third,
            (0.6, 0.2): 0.0,
        }
    )
    assert result.mean == pytest.approx((both + only_first + only_third) / 4)


@pytest.mark.parametrize(
    ("pairs", "groups"),
    [
        pytest.param([], [[0], [1], [2]], id="apart"),
        pytest.param([(0, 2)], [[0, 2], [1]], id="two of one"),
        pytest.param([(0, 1), (1, 2)], [[0, 1, 2]], id="around the one in the middle"),
    ],
)
def test_references_of_one_object_are_one(pairs, groups):
    overlaps = np.full((3, 3), 0.69)
    for one, other in pairs:
        overlaps[one, other] = overlaps[other, one] = 0.7
    assert merged(overlaps) == groups


def test_no_references_are_no_objects():
    assert merged(np.zeros((0, 0))) == []


@pytest.mark.parametrize("references", [0, 3])
def test_nothing_said_finds_nothing(references):
    assert dense_map([], [], references).mean == 0


def test_all_right_is_one():
    matches = [Match(str(i), str(i), 1.0, True, i / 10) for i in range(7)]
    assert dense_map(matches, [1.0] * 7, 7).mean == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("one", "other", "iou"),
    [
        ((0, 9), (0, 9), 1),
        ((0, 9), (5, 14), 1 / 3),
        ((0, 4), (5, 9), 0),
        ((3, 3), (0, 9), 0.1),
    ],
)
def test_overlap_of_supports(one, other, iou):
    assert support_iou(one, other) == support_iou(other, one) == pytest.approx(iou)


spans = st.floats(0, 1, allow_subnormal=False)
sides = st.floats(0.01, 1)
boxes = st.tuples(spans, spans, sides, sides)


@given(boxes, boxes)
def test_overlap_of_boxes_is_symmetric_and_a_share(one, other):
    assert box_iou(one, other) == pytest.approx(box_iou(other, one))
    assert 0 <= box_iou(one, other) <= 1 + 1e-9
    assert box_iou(one, one) == pytest.approx(1)


DOG, CAT = (0, 0, 10, 10), (50, 50, 60, 60)
TRUTH = [(DOG, "a dog"), ((0, 0, 10, 11), "the dog"), (CAT, "a cat")]  # two objects


def said_by_images(*images: list[tuple[tuple[float, ...], str, float]]) -> ImageMatches:
    found = ImageMatches()
    for boxes in images:
        found.add([Detection(box, sure, text) for box, text, sure in boxes], TRUTH)
    return found


def same(pairs: list[tuple[str, tuple[str, ...]]]) -> list[float]:
    """Stands for METEOR: 1 for the words of a reference."""
    return [float(text in references) for text, references in pairs]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        # Several references of a region are one object: a perfect set gets all.
        pytest.param([(DOG, "the dog", 2), (CAT, "a cat", 1)], 1.0, id="perfect"),
        # One object found of two: precision 1 up to recall 0.5, of 51 of 100 points.
        pytest.param([(DOG, "a dog", 2)], 0.51, id="one of two"),
        pytest.param(
            [((80, 80, 90, 90), "a dog", 2), (DOG, "a dog", 1)],
            0.255,
            id="a surer wrong one halves the precision up to there",
        ),
        pytest.param(
            [(DOG, "a dog", 2), ((0, 0, 10, 11), "the dog", 1)],
            0.51,
            id="the second on the same object is wrong",
        ),
        pytest.param([(DOG, "a cat", 2)], 0.0, id="wrong words in the right place"),
        pytest.param([], 0.0, id="nothing"),
    ],
)
def test_described_boxes(boxes, expected):
    found = said_by_images(boxes)
    assert found.result(same(found.placed())).mean == pytest.approx(expected)


def test_boxes_alone_count_by_place():
    found = said_by_images([((0, 0, 10, 5.5), "x", 1)])
    places = found.result().by_threshold
    assert places[0.5, -1.0] == pytest.approx(0.51) and places[0.6, -1.0] == 0
    assert same(found.placed()) == [0]


def test_images_without_a_described_box_leave_the_denominator():
    alone, beside = (
        said_by_images([(DOG, "a dog", 1)]),
        said_by_images([(DOG, "a dog", 1)], []),
    )
    assert alone.objects == beside.objects == 2
    assert edges_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
