"""Color histograms of objects, by which they are told from others."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame, Mask, crop_mask


def hsv_histogram(
    frame: Frame, mask: Mask, bins: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Returns the histogram of hue, saturation and value inside a mask.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        mask: Object mask, bool (H, W), not empty.
        bins: Number of bins for hue, saturation and value.

    Returns:
        float32 (n,) with a sum of 1.
    """
    found = crop_mask(mask)
    assert found is not None, "the mask has a pixel"
    (x1, y1, x2, y2), inside = found
    crop = np.ascontiguousarray(frame[int(y1) : int(y2), int(x1) : int(x2)])
    hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV)
    ranges = [0, 180, 0, 256, 0, 256]
    counts = cv2.calcHist([hsv], [0, 1, 2], inside.astype(np.uint8), bins, ranges)
    return counts.ravel() / counts.sum()


def overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Returns the intersection of two histograms with a sum of 1, in [0, 1]."""
    return float(np.minimum(one, other).sum())
