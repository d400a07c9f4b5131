"""Samples a track's frames for captioners, and splits long tracks into windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiftyone_regioncap.core.types import Track


def sample_frames(visible: ArrayLike, count: int) -> tuple[int, ...]:
    """Samples frames evenly from those on which an object is visible.

    With enough frames, the first, the last and evenly spaced ones between, rounded
    down: the choice of the reference code of DAM (Lian et al., 2025) over frames with a
    mask. With fewer than ``count``, all of them, each as often as the others give or
    take one. A single one is the middle one.

    Args:
        visible: Frame indices, int (V,), ascending, at least one.
        count: Number of frames to choose, at least 1.

    Returns:
        ``count`` of the indices, ascending; doubles only when V < count.

    Raises:
        ValueError: If there is no visible frame, or ``count`` is less than 1.
    """
    frames = np.asarray(visible, dtype=np.int64)
    if frames.ndim != 1 or frames.size == 0:
        raise ValueError("the object is visible on no frame; there is none to choose")
    if count < 1:
        raise ValueError(f"count is {count}; choose at least 1 frame")
    steps = np.arange(count, dtype=np.int64)
    if count == 1:
        ranks = np.array([(frames.size - 1) // 2])
    elif frames.size < count:
        ranks = steps * frames.size // count
    else:
        ranks = steps * (frames.size - 1) // (count - 1)
    return tuple(frames[ranks].tolist())


def fixed_windows(visible: ArrayLike, length: int) -> Iterator[tuple[int, int]]:
    """Splits a track into windows of one length, without overlap.

    The first window starts where the object is first visible, the last one ends where
    it is last visible; windows in which it is never visible are left out.

    Args:
        visible: Frame indices, int (V,), ascending.
        length: Length of a window in frames, at least 1.

    Yields:
        (first, last) frame of each window, 0-based and inclusive, in order of time.

    Raises:
        ValueError: If the length is less than 1.
    """
    if length < 1:
        raise ValueError(f"a window of {length} frames is none; give at least 1")
    frames = np.asarray(visible, dtype=np.int64)
    if frames.size == 0:
        return
    start, end = int(frames[0]), int(frames[-1])
    for window in np.unique((frames - start) // length).tolist():
        first = start + window * length
        yield first, min(first + length - 1, end)


@dataclass(frozen=True)
class ChangeThresholds:
    """Thresholds of change of an object against the start of its window.

    Attributes:
        aspect: Factor by which width/height grows or shrinks.
        area: Factor by which the area grows or shrinks; 2 is twice or half as large.
        velocity: Change of the velocity of the box's center, in object sizes (square
            root of the box's area) per frame.
        appearance: Share of the color histogram that moves to other bins, in [0, 1].
        hold: Number of visible frames for which a change has to last, so that a single
            bad mask ends no window; also the number of frames that a window's start is
            averaged over.
        gap: Number of frames without the object that always end a window.
        shortest: Minimum number of visible frames of a window that ends by a change.
        longest: Maximum number of visible frames of a window; None for no limit.
    """

    aspect: float = 1.6
    area: float = 2.0
    velocity: float = 0.15
    appearance: float = 0.4
    hold: int = 3
    gap: int = 15
    shortest: int = 12
    longest: int | None = None


def change_windows(
    track: Track,
    *,
    areas: Sequence[float] | NDArray[np.float64] | None = None,
    histograms: NDArray[np.float64] | None = None,
    thresholds: ChangeThresholds | None = None,
) -> Iterator[tuple[int, int]]:
    """Splits a track where the object changes in shape, size, motion or appearance.

    Each window is compared with its own start, so slow changes cut too once they add
    up. Everything is measured in the image: a camera that turns sharply is a change of
    motion like any other.

    Args:
        track: The track of one object.
        areas: (V,) areas of its masks in pixels; None to use the boxes' areas.
        histograms: (V, B) histograms of its colors, each with the sum 1; None to ignore
            appearance.
        thresholds: Thresholds of what counts as a change; None for the defaults.

    Yields:
        (first, last) frame of each window, 0-based and inclusive, in order of time,
        both visible; every visible frame is in exactly one.
    """
    limits = thresholds or ChangeThresholds()
    frames = track.frames
    if frames.size == 0:
        return
    changes = _Changes(track, areas, histograms, limits)
    begin = lasting = 0
    for rank in range(1, frames.size):
        lasting = lasting + 1 if changes.changed(begin, rank) else 0
        absent = frames[rank] - frames[rank - 1] > limits.gap
        full = limits.longest is not None and rank - begin >= limits.longest
        if absent or full:
            cut = rank
        elif lasting >= limits.hold and rank - begin >= limits.shortest:
            # Where the change began, if the window is long enough without it.
            cut = max(rank - lasting + 1, begin + limits.shortest)
        else:
            continue
        yield int(frames[begin]), int(frames[cut - 1])
        begin, lasting = cut, 0
    yield int(frames[begin]), int(frames[-1])


class _Changes:
    """Compares visible frames of a track with the start of their window."""

    def __init__(
        self,
        track: Track,
        areas: Sequence[float] | NDArray[np.float64] | None,
        histograms: NDArray[np.float64] | None,
        limits: ChangeThresholds,
    ) -> None:
        x1, y1, x2, y2 = track.boxes.T
        width, height = np.maximum(x2 - x1, 1e-6), np.maximum(y2 - y1, 1e-6)
        size = width * height if areas is None else np.maximum(areas, 1e-6)
        self._limits = limits
        self._histograms = histograms
        # Logarithms make growing and shrinking by one factor the same distance.
        self._log_aspect = np.log(width / height)
        self._log_area = np.log(size)
        centers = np.stack([(x1 + x2) / 2, (y1 + y2) / 2], axis=1)
        self._velocity = np.zeros_like(centers)
        if len(centers) > 1:
            back = np.maximum(np.arange(len(centers)) - limits.hold, 0)
            back[0], ahead = 0, np.maximum(np.arange(len(centers)), 1)
            passed = (track.frames[ahead] - track.frames[back])[:, None]
            self._velocity = (centers[ahead] - centers[back]) / passed
            self._velocity /= np.sqrt(width * height)[:, None]

    def changed(self, begin: int, rank: int) -> bool:
        """Decides whether the object differs from the first frames of its window."""
        limits = self._limits
        start = slice(begin, min(begin + limits.hold, rank))

        def moved(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return values[rank] - np.median(values[start], axis=0)

        if abs(moved(self._log_aspect)) > np.log(limits.aspect):
            return True
        if abs(moved(self._log_area)) > np.log(limits.area):
            return True
        if np.linalg.norm(moved(self._velocity)) > limits.velocity:
            return True
        if self._histograms is None:
            return False
        return 0.5 * np.abs(moved(self._histograms)).sum() > limits.appearance
