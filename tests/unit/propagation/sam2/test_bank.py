from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.propagation.sam2.bank import nearest

FRAMES = st.lists(st.integers(0, 200), min_size=1, unique=True).map(sorted)


@pytest.mark.parametrize(
    ("frames", "frame", "count", "chosen"),
    [
        ([3, 9], 5, 4, [3, 9]),  # fewer than asked for
        ([1, 4, 8, 20], 5, 2, [4, 8]),  # before and after
        ([1, 4, 8, 20], 5, 3, [1, 4, 8]),  # the closest of the rest
        ([1, 4, 8, 20], 8, 2, [4, 8]),  # a prompt on the frame itself counts as after
        ([0, 50, 60], 70, 2, [50, 60]),  # nothing after
        ([50, 60, 90], 10, 1, [50]),  # nothing before
        ([1, 4, 8], 5, 1, [4, 8]),  # one before and one after always
    ],
)
def test_nearest(frames, frame, count, chosen):
    assert nearest(frames, frame, count) == chosen


@given(FRAMES, st.integers(2, 6))
def test_frames_left_behind_are_never_looked_at_again(frames, count):
    for order in (range(201), range(200, -1, -1)):
        dropped: set[int] = set()
        seen: set[int] = set()
        for frame in order:
            chosen = set(nearest(frames, frame, count))
            assert not chosen & dropped
            dropped |= {other for other in seen - chosen}
            seen |= chosen
