from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.core.types import Track
from fiftyone_regioncap.video.sampling import (
    ChangeThresholds,
    change_windows,
    fixed_windows,
    sample_frames,
)

visible_frames = st.sets(st.integers(0, 5000), min_size=1, max_size=300).map(sorted)


@pytest.mark.parametrize(
    ("visible", "count", "chosen"),
    [
        (range(12), 8, (0, 1, 3, 4, 6, 7, 9, 11)),  # the choice of DAM's own code
        (range(8), 8, (0, 1, 2, 3, 4, 5, 6, 7)),
        ([5, 9, 100], 8, (5, 5, 5, 9, 9, 9, 100, 100)),
        ([7], 3, (7, 7, 7)),
        (range(10, 15), 1, (12,)),
        ([3, 4, 90, 91], 2, (3, 91)),
    ],
)
def test_chosen_frames(visible: list[int], count: int, chosen: tuple[int, ...]) -> None:
    assert sample_frames(list(visible), count) == chosen


@given(visible_frames, st.integers(1, 64))
def test_chosen_frames_are_visible_ascending_and_even(
    visible: list[int], count: int
) -> None:
    chosen = sample_frames(visible, count)
    assert len(chosen) == count
    assert set(chosen) <= set(visible)
    assert list(chosen) == sorted(chosen)
    if len(visible) >= count:
        assert len(set(chosen)) == count
        gaps = np.diff([visible.index(frame) for frame in chosen])
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
        assert count == 1 or (chosen[0], chosen[-1]) == (visible[0], visible[-1])
    else:
        times = [chosen.count(frame) for frame in visible]
        assert max(times) - min(times) <= 1


@pytest.mark.parametrize(("visible", "count"), [([], 8), ([1, 2], 0)])
def test_nothing_to_choose(visible: list[int], count: int) -> None:
    with pytest.raises(ValueError):
        sample_frames(visible, count)


@pytest.mark.parametrize(
    ("visible", "length", "windows"),
    [
        (range(10), 4, [(0, 3), (4, 7), (8, 9)]),
        ([3, 4, 5], 100, [(3, 5)]),
        ([3, 20], 5, [(3, 7), (18, 20)]),  # never visible between: no window
        ([], 5, []),
        ([6], 1, [(6, 6)]),
    ],
)
def test_fixed_windows(
    visible: list[int], length: int, windows: list[tuple[int, int]]
) -> None:
    assert list(fixed_windows(list(visible), length)) == windows


def test_windows_have_a_length() -> None:
    with pytest.raises(ValueError):
        list(fixed_windows([1, 2], 0))


@given(visible_frames, st.integers(1, 700))
def test_fixed_windows_hold_every_visible_frame_once(
    visible: list[int], length: int
) -> None:
    windows = list(fixed_windows(visible, length))
    for first, last in windows:
        assert 1 <= last - first + 1 <= length
        assert any(first <= frame <= last for frame in visible)
    for (_, last), (first, _) in itertools.pairwise(windows):
        assert last < first
    for frame in visible:
        assert sum(first <= frame <= last for first, last in windows) == 1


def still(count: int = 60, first: int = 10) -> Track:
    boxes = np.tile([100.0, 100.0, 140.0, 120.0], (count, 1))
    return Track(1, np.arange(first, first + count), boxes, np.ones(count))


def test_an_object_that_stays_the_same_is_one_window() -> None:
    jitter = np.random.default_rng(0).normal(0, 0.7, (60, 4))
    track = replace(still(), boxes=still().boxes + jitter)
    assert list(change_windows(track)) == [(10, 69)]


def _grown(track: Track) -> Track:
    boxes = track.boxes.copy()
    boxes[30:, 2:] += [24, 12]
    return replace(track, boxes=boxes)


def _upright(track: Track) -> Track:
    boxes = track.boxes.copy()
    boxes[30:] = [110, 90, 130, 130]
    return replace(track, boxes=boxes)


def _started_to_move(track: Track) -> Track:
    boxes = track.boxes.copy()
    boxes[30:, ::2] += (np.arange(30) * 8.0)[:, None]
    return replace(track, boxes=boxes)


@pytest.mark.parametrize("change", [_grown, _upright, _started_to_move])
def test_a_change_cuts_near_where_it_happens(change: object) -> None:
    windows = list(change_windows(change(still())))  # type: ignore[operator]
    assert len(windows) == 2
    assert abs(windows[1][0] - 40) <= 3
    assert windows[1][0] == windows[0][1] + 1


def test_appearance_and_mask_area_cut_when_given() -> None:
    histograms = np.zeros((60, 4))
    histograms[:25, 0] = histograms[25:, 2] = 1
    assert list(change_windows(still(), histograms=histograms)) == [(10, 34), (35, 69)]
    areas = np.r_[np.full(25, 700.0), np.full(35, 300.0)]
    assert list(change_windows(still(), areas=areas)) == [(10, 34), (35, 69)]


def test_one_bad_mask_cuts_nothing() -> None:
    areas = np.full(60, 700.0)
    areas[30] = 20
    assert list(change_windows(still(), areas=areas)) == [(10, 69)]


def test_a_long_absence_cuts() -> None:
    track = still()
    frames = track.frames.copy()
    frames[20:] += 50
    assert list(change_windows(replace(track, frames=frames))) == [(10, 29), (80, 119)]


@given(
    visible_frames,
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_change_windows_hold_every_visible_frame_once(
    visible: list[int], seed: int, shortest: int, longest: int | None
) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 200, (len(visible), 2))
    boxes = np.hstack([corners, corners + random.uniform(1, 200, corners.shape)])
    track = Track(1, np.array(visible), boxes, np.ones(len(visible)))
    limits = ChangeThresholds(shortest=shortest, longest=longest)
    windows = list(change_windows(track, thresholds=limits))
    inside = [[f for f in visible if first <= f <= last] for first, last in windows]
    assert [frame for window in inside for frame in window] == visible
    for window, (first, last) in zip(inside, windows, strict=True):
        assert (window[0], window[-1]) == (first, last)
        assert np.diff(window).max(initial=0) <= limits.gap
        assert longest is None or len(window) <= longest
