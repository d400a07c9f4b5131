from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import (
    RLE,
    Prompt,
    box_of_mask,
    crop_mask,
    paste_mask,
    polygons_to_mask,
)

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1))


@given(masks)
def test_rle_gives_the_mask_back(mask):
    encoded = RLE.encode(mask)
    assert np.array_equal(encoded.decode(), mask)
    assert encoded.area() == mask.sum()


@given(masks)
def test_squares_around_its_pixels_give_the_mask_back(mask):
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64)
    squares = [corners + place[::-1] for place in np.argwhere(mask)]
    assert np.array_equal(polygons_to_mask(squares, *mask.shape), mask)


@given(masks)
def test_cropping_and_pasting_gives_the_mask_back(mask):
    cropped = crop_mask(mask)
    if cropped is None:
        assert not mask.any()
        assert box_of_mask(mask) is None
    else:
        box, inner = cropped
        assert np.array_equal(paste_mask(inner, box, *mask.shape), mask)


@given(
    st.tuples(*[st.floats(-20, 30)] * 4),
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1)),
)
def test_pasting_anywhere_stays_inside_the_box(edges, inner):
    x1, y1 = edges[0], edges[1]
    box = (x1, y1, x1 + abs(edges[2]), y1 + abs(edges[3]))
    full = paste_mask(inner, box, 12, 9)
    assert full.shape == (12, 9)
    painted = box_of_mask(full)
    if painted is not None:
        assert painted[0] >= round(box[0]) and painted[1] >= round(box[1])
        assert painted[2] <= max(round(box[2]), round(box[0]) + 1)


@given(
    st.tuples(*[st.integers(-9, 9)] * 2, *[st.integers(1, 30)] * 2),
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1)),
)
def test_pasting_is_resizing_by_nearest_neighbor(place, inner):
    x, y, width, height = place
    resized = cv2.resize(
        inner.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
    )
    whole = np.zeros((60, 60), dtype=bool)
    whole[20 + y : 20 + y + height, 20 + x : 20 + x + width] = resized
    full = paste_mask(inner, (x, y, x + width, y + height), 12, 9)
    assert np.array_equal(full, whole[20:32, 20:29])


def test_a_box_far_larger_than_its_frame_costs_no_more_than_the_frame():
    far = 1e6
    tracemalloc.start()
    full = paste_mask(np.ones((3, 3), dtype=bool), (-far, -far, far, far), 100, 200)
    assert full.all()
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("polygon", "expected"),
    [
        # A square on pixel edges fills exactly its pixels.
        ([[1, 1], [3, 1], [3, 3], [1, 3]], {(1, 1), (1, 2), (2, 1), (2, 2)}),
        # A triangle fills the pixels whose centers it covers.
        ([[0, 0], [3, 0], [0, 3]], {(0, 0), (0, 1), (1, 0)}),
        # What lies outside the frame is cut off.
        ([[-5, 3], [9, 3], [9, 9], [-5, 9]], {(3, 0), (3, 1), (3, 2), (3, 3)}),
    ],
)
def test_polygons_fill_by_pixel_centers(polygon, expected):
    mask = polygons_to_mask([np.asarray(polygon, float)], 4, 4)
    on_an_edge = {(0, 2), (1, 1), (2, 0)}
    assert set(zip(*map(tuple, np.nonzero(mask)), strict=True)) - on_an_edge == (
        expected - on_an_edge
    )


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (Prompt(1, 9, box=(0, 0, 2, 2)), "frames 1 to 5"),
        (Prompt(1, -1, box=(0, 0, 2, 2)), "frames 1 to 5"),
        (Prompt(1, 0), "give a box, points or a mask"),
        (Prompt(1, 0, box=(3, 3, 3, 5)), "has no area"),
        (Prompt(1, 0, box=(float("nan"), 0, 3, 5)), "has no area"),
        (Prompt(1, 0, box=(20, 0, 30, 5)), "outside the 10x8 frame"),
        (Prompt(1, 0, points=np.array([[3.0, 9.0]])), "outside the 10x8 frame"),
        (Prompt(1, 0, points=np.zeros((0, 2))), "points are (N, 2)"),
        (
            Prompt(1, 0, points=np.ones((2, 2)), point_signs=np.array([True])),
            "2 points but 1 signs",
        ),
        (Prompt(1, 0, mask=np.ones((10, 8), bool)), "mask is 8x10"),
        (Prompt(1, 0, mask=np.zeros((8, 10), bool)), "mask is empty"),
    ],
)
def test_bad_prompts_are_named(prompt, says):
    with pytest.raises(PromptError, match="object 1") as error:
        prompt.check(height=8, width=10, frame_count=5)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(1, 4, box=(-3, -3, 2, 2)),
        Prompt(1, 0, points=np.array([[0.0, 0.0], [9.9, 7.9]])),
        Prompt(1, 0, mask=np.eye(8, 10, dtype=bool)),
        # Points off the object refine a box.
        Prompt(
            1,
            0,
            box=(0, 0, 5, 5),
            points=np.ones((1, 2)),
            point_signs=np.array([False]),
        ),
    ],
)
def test_good_prompts_pass(prompt):
    prompt.check(height=8, width=10, frame_count=5)


POINTS = np.ones((2, 2))


@pytest.mark.parametrize(
    ("prompt", "signs", "negative_only"),
    [
        (Prompt(1, 0, points=POINTS), [True, True], False),
        (Prompt(1, 0, points=POINTS, point_signs=[True, False]), [True, False], False),
        (Prompt(1, 0, points=POINTS, point_signs=[0, 0]), [False, False], True),
        (
            Prompt(1, 0, box=(0, 0, 5, 5), points=POINTS, point_signs=[0, 0]),
            [False, False],
            False,
        ),
        (Prompt(1, 0, box=(0, 0, 5, 5)), [], False),
    ],
)
def test_signs_of_points(prompt, signs, negative_only):
    assert prompt.signs.tolist() == signs
    assert prompt.signs.dtype == bool
    assert prompt.negative_only == negative_only
