"""Refinement of outlines to the edges of the image by GrabCut.

C. Rother et al., "GrabCut: Interactive Foreground Extraction Using Iterated Graph
Cuts", SIGGRAPH 2004.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame, Mask, box_of_mask

_SIDE: Final = 200
_SAMPLES: Final = 10

# As shares of the root of a mask's area: what surely goes, and what may go at all.
_NEAR: Final = 0.08
_FAR: Final = 0.25


def grabcut(frame: Frame, likely: Mask, sure: Mask, possible: Mask) -> Mask:
    """Moves a mask's outline to the edges of the image.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        likely: Initial mask, bool (H, W), inside ``possible``.
        sure: Sure foreground, bool (H, W).
        possible: Possible foreground, bool (H, W); all else is sure background.

    Returns:
        bool (H, W); ``likely`` where GrabCut finds nothing.
    """
    box = box_of_mask(possible)
    if box is None:
        return likely
    height, width = likely.shape
    x1, y1, x2, y2 = (int(edge) for edge in box)
    margin = 8 + max(x2 - x1, y2 - y1) // 4
    rows = slice(max(y1 - margin, 0), min(y2 + margin, height))
    columns = slice(max(x1 - margin, 0), min(x2 + margin, width))
    trimap = np.full(likely.shape, cv2.GC_BGD, dtype=np.uint8)
    trimap[possible] = cv2.GC_PR_BGD
    trimap[likely] = cv2.GC_PR_FGD
    trimap[sure] = cv2.GC_FGD
    trimap = trimap[rows, columns]
    scale = min(1.0, _SIDE / max(trimap.shape))
    size = [max(2, round(edge * scale)) for edge in likely[rows, columns].shape[::-1]]
    small = cv2.resize(frame[rows, columns], size, interpolation=cv2.INTER_AREA)
    cut = cv2.resize(trimap, size, interpolation=cv2.INTER_NEAREST)
    on = (cut & 1).astype(bool)
    if on.sum() < _SAMPLES or (~on).sum() < _SAMPLES:
        return likely
    cv2.setRNGSeed(0)  # its color models start from random clusters
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, cut, None, *models, 2, cv2.GC_INIT_WITH_MASK)
    found = cv2.resize((cut & 1).astype(np.float32), trimap.shape[::-1]) > 0.5
    if not found.any():
        return likely
    mask = np.zeros_like(likely)
    mask[rows, columns] = found
    return mask


def remove_around(frame: Frame, mask: Mask, points: NDArray[np.floating]) -> Mask:
    """Removes from a mask what is around points that are off the object.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        mask: Object mask, bool (H, W).
        points: Points off the object, (N, 2) of x, y in pixels.

    Returns:
        bool (H, W), a part of the mask without the points and without what looks like
        their surroundings.
    """
    height, width = mask.shape
    covered = [mask[min(int(y), height - 1), min(int(x), width - 1)] for x, y in points]
    if not any(covered):
        return mask
    size = float(np.sqrt(mask.sum()))
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    distance = np.full(mask.shape, np.inf)
    for column, row in points:
        distance = np.minimum(distance, np.hypot(x - column, y - row))
    # A click is about its surroundings; what is far from it stays.
    near, far = distance <= max(size * _NEAR, 1.0), distance > size * _FAR
    rest = mask & ~near
    return grabcut(frame, rest, rest & far, rest) & rest
