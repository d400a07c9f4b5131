"""Times at which the frames of a video are shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SAME_RATE = 1e-3  # relative; time stamps are rounded to their time base
_INTO_FRAME = 0.01
_ROUNDING = 6e-4  # seconds; some containers keep times in milliseconds


@dataclass(frozen=True)
class Timeline:
    """Presentation times of a video's frames, as its file states them.

    Attributes:
        times: float64 (N,) seconds from the first frame, ascending, of the frames that
            can be read.
        rate: Mean number of frames per second.
        start: Seconds from the start of playback to the first frame; more than 0 where
            the video begins after the sound.
    """

    times: NDArray[np.float64]
    rate: float
    start: float = 0.0

    @classmethod
    def constant(cls, count: int, rate: float) -> Timeline:
        """Makes the timeline of frames at a constant rate."""
        return cls(np.arange(count) / rate, rate)

    def at(self, frame: int) -> float:
        """Returns when a frame is shown, in seconds from the start of playback.

        Args:
            frame: 0-based; numbers past the end count on at the mean rate, so that the
                number of frames gives the time at which the last one ends.
        """
        known = min(frame, len(self.times) - 1)
        return self.start + float(self.times[known]) + (frame - known) / self.rate

    def rate_between(self, first: int, last: int) -> float:
        """Computes the mean rate over some frames.

        Args:
            first: First frame, 0-based.
            last: Last frame, 0-based.
        """
        seconds = self.at(last) - self.at(first)
        local = (last - first) / seconds if last > first and seconds > 0 else self.rate
        close = abs(local - self.rate) <= _SAME_RATE * self.rate
        return self.rate if close else local

    def misplaced(self) -> int:
        """Counts the frames whose labels FiftyOne's App shows on another frame.

        The App takes frame ``floor(time * rate) + 1`` for what is shown at a time, and
        seeks to a hundredth of a frame after a frame's start by that rule.
        """
        numbers = np.arange(len(self.times))
        sought = (numbers + _INTO_FRAME) / self.rate + _ROUNDING
        shown = np.searchsorted(self.times + self.start, sought, side="right") - 1
        return int((np.maximum(shown, 0) != numbers).sum())
