from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.propagation.grabcut import remove_around

FRAME = np.full((60, 80, 3), 90, dtype=np.uint8)
FRAME[10:50, 10:40] = (200, 30, 30)
FRAME[10:50, 40:50] = (30, 30, 200)
MASK = np.zeros((60, 80), dtype=bool)
MASK[10:50, 10:50] = True


@pytest.mark.parametrize(
    ("points", "gone", "stays"),
    [
        ([(45, 30)], (30, 45), (30, 15)),  # on the blue part
        ([(45, 20), (45, 40)], (40, 45), (30, 15)),  # twice
        ([(79.9, 59.9)], None, (30, 45)),  # outside the mask
        ([], None, (30, 45)),
    ],
)
def test_what_is_around_a_click_goes(points, gone, stays):
    found = remove_around(FRAME, MASK, np.reshape(points, (-1, 2)).astype(float))
    assert found[stays]
    assert not (found & ~MASK).any()
    if gone is None:
        assert np.array_equal(found, MASK)
    else:
        assert not found[gone]
        # most of the red part, which looks otherwise, is still there
        assert found[10:50, 10:40].mean() > 0.9


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 79.9), st.floats(0, 59.9))
def test_a_click_anywhere_takes_no_more_than_its_surroundings(x, y):
    found = remove_around(FRAME, MASK, np.array([[x, y]]))
    assert not (found & ~MASK).any()
    assert found.sum() >= 0.75 * MASK.sum()
    if MASK[int(y), int(x)]:
        assert not found[int(y), int(x)]
