"""J and F against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fiftyone_regioncap.evaluation.masks import (
    boundary,
    contour_accuracy,
    region_similarity,
)


def square(x: int, y: int, side: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


EMPTY = np.zeros((40, 40), dtype=bool)


@pytest.mark.parametrize(
    ("predicted", "truth", "j"),
    [
        (square(5, 5, 10), square(5, 5, 10), 1.0),  # equal
        (square(5, 5, 10), square(10, 5, 10), 50 / 150),  # half shared
        (square(5, 5, 10), square(20, 20, 10), 0.0),  # apart
        (EMPTY, square(5, 5, 10), 0.0),  # missed
        (EMPTY, EMPTY, 1.0),  # rightly nothing
    ],
)
def test_region_similarity(predicted, truth, j):
    assert region_similarity(predicted, truth) == pytest.approx(j)


@pytest.mark.parametrize(
    ("predicted", "truth", "tolerance", "f"),
    [
        (square(5, 5, 10), square(5, 5, 10), 1, 1.0),  # equal
        (square(5, 5, 10), square(6, 5, 10), 1, 1.0),  # within the tolerance
        (square(5, 5, 10), square(25, 25, 10), 1, 0.0),  # apart
        (EMPTY, square(5, 5, 10), 1, 0.0),  # missed
        (EMPTY, EMPTY, 1, 1.0),  # rightly nothing
        # 0.8 % of the diagonal of 40 x 40 rounds up to one pixel
        (square(5, 5, 10), square(6, 5, 10), 0.008, 1.0),
        # shifted by 2: of 44 boundary pixels, those of the two sides (11 + 11, less the
        # ends within reach) are not found
        (square(5, 5, 10), square(7, 5, 10), 1, 22 / 40),
    ],
)
def test_contour_accuracy(predicted, truth, tolerance, f):
    assert contour_accuracy(predicted, truth, tolerance) == pytest.approx(f)


def test_boundary_is_one_pixel_wide_and_ignores_the_frame():
    mask = np.zeros((3, 4), dtype=bool)
    mask[:, :2] = True
    expected = np.zeros((3, 4), dtype=bool)
    expected[:, 1] = True
    assert (boundary(mask) == expected).all()
    assert not boundary(np.ones((3, 4), dtype=bool)).any()


@given(*(npst.arrays(bool, (12, 9)) for _ in range(2)), st.sampled_from([0.008, 1, 2]))
def test_both_are_symmetric_and_in_range(a, b, tolerance):
    for value, swapped in (
        (region_similarity(a, b), region_similarity(b, a)),
        (contour_accuracy(a, b, tolerance), contour_accuracy(b, a, tolerance)),
    ):
        assert 0 <= value <= 1
        assert value == pytest.approx(swapped)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="different sizes"):
        region_similarity(EMPTY, np.zeros((4, 4), dtype=bool))
