"""Finds cuts between shots from colors and layout, at a millisecond a frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame

THUMBNAIL = (64, 36)
"""Width and height at which frames are compared, in pixels."""

MEMORY = 12
"""How many differences before a frame tell what is usual."""

SPIKE = 3.0
"""How far above the usual difference a cut stands out."""


@dataclass(frozen=True)
class Look:
    """What is compared of a frame.

    Attributes:
        colors: float32 (n,), histogram of hue, saturation and value; its sum is 1.
        layout: float32 (m,), brightness of a thumbnail, standardized.
    """

    colors: NDArray[np.float32]
    layout: NDArray[np.float32]

    @classmethod
    def of(cls, frame: Frame) -> Look:
        """Looks at a frame, uint8 (H, W, 3) RGB."""
        small = cv2.resize(frame, THUMBNAIL, interpolation=cv2.INTER_AREA)
        hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
        colors = cv2.calcHist(
            [hsv], [0, 1, 2], None, [12, 4, 6], [0, 180, 0, 256, 0, 256]
        ).ravel()
        gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32).ravel()
        gray -= gray.mean()
        return cls(colors / colors.sum(), gray / max(float(gray.std()), 1.0))

    def difference(self, other: Look) -> float:
        """In [0, 1]: how unlike two frames are, in colors and in layout at once.

        A flash changes colors and keeps the layout, a fast pan the other way round;
        only a cut changes both.
        """
        colors = 1 - float(np.minimum(self.colors, other.colors).sum())
        layout = (1 - float((self.layout * other.layout).mean())) / 2
        return float(np.sqrt(max(colors, 0) * np.clip(layout, 0, 1)))


class SceneCutDetector:
    """Goes through frames in order (or backwards) and says where a new shot begins."""

    def __init__(self, sensitivity: float = 0.5) -> None:
        """Starts before the first frame.

        Args:
            sensitivity: in (0, 1]; higher finds softer cuts, and more that are none.
        """
        if not 0 < sensitivity <= 1:
            raise ValueError(f"sensitivity {sensitivity} is not in (0, 1]")
        self._threshold = 0.5 - 0.45 * sensitivity
        self._last: Look | None = None
        self._usual: deque[float] = deque(maxlen=MEMORY)

    def is_cut(self, frame: Frame) -> bool:
        """Whether this frame, uint8 (H, W, 3) RGB, begins a new shot."""
        look = Look.of(frame)
        if self._last is None:
            self._last = look
            return False
        difference = look.difference(self._last)
        usual = median(self._usual) if self._usual else 0.0
        self._last = look
        cut = difference > self._threshold and difference > SPIKE * usual
        if cut:
            self._usual.clear()
        else:
            self._usual.append(difference)
        return cut

    @property
    def state(self) -> NDArray[np.float64]:
        """The differences seen lately, float64 (n,); see :meth:`restore`."""
        return np.array(self._usual, dtype=np.float64)

    def restore(self, last: Frame, differences: Iterable[float]) -> None:
        """Goes on where another detector was, whose last frame was ``last``."""
        self._last = Look.of(last)
        self._usual.extend(float(value) for value in differences)
