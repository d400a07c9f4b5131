"""Compares masks by region similarity J and contour accuracy F.

As defined in F. Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for
Video Object Segmentation", CVPR 2016: J is the intersection over union; F is the
harmonic mean of the precision and recall of the boundary pixels, where a boundary pixel
counts as found within 0.8 % of the image's diagonal.
"""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Mask

TOLERANCE: Final = 0.008
"""Distance that boundaries may have, as a share of the image's diagonal."""


def region_similarity(predicted: Mask, truth: Mask) -> float:
    """Computes J of one mask: the intersection over union.

    Args:
        predicted: Predicted mask, bool (H, W).
        truth: Reference mask, bool (H, W).

    Returns:
        J in [0, 1]; 1 when both are empty.

    Raises:
        ValueError: When the sizes differ.
    """
    _check_sizes(predicted, truth)
    union = np.count_nonzero(predicted | truth)
    if union == 0:
        return 1.0
    return float(np.count_nonzero(predicted & truth) / union)


def contour_accuracy(
    predicted: Mask, truth: Mask, tolerance: float = TOLERANCE
) -> float:
    """Computes F of one mask: how much of the boundaries coincides.

    Args:
        predicted: Predicted mask, bool (H, W).
        truth: Reference mask, bool (H, W).
        tolerance: Distance that boundaries may have: a share of the diagonal when below
            1, else pixels.

    Returns:
        F in [0, 1]; 1 when both masks have no boundary, 0 when only one has.

    Raises:
        ValueError: When the sizes differ.
    """
    _check_sizes(predicted, truth)
    radius = tolerance
    if tolerance < 1:
        radius = math.ceil(tolerance * math.hypot(*truth.shape))
    found, wanted = boundary(predicted), boundary(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    disk = _disk(int(radius))
    precision = (found & _dilated(wanted, disk)).sum() / found.sum()
    recall = (wanted & _dilated(found, disk)).sum() / wanted.sum()
    if precision + recall == 0:
        return 0.0
    return float(2 * precision * recall / (precision + recall))


def boundary(mask: Mask) -> Mask:
    """Finds the pixels of a one pixel wide boundary.

    A pixel is on it when its right, lower or lower right neighbor differs from it; the
    frame's own border is none.

    Args:
        mask: Mask, bool (H, W).

    Returns:
        bool (H, W).
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def _disk(radius: int) -> NDArray[np.uint8]:
    offsets = np.arange(-radius, radius + 1)
    inside = offsets[:, None] ** 2 + offsets**2 <= radius**2
    return inside.astype(np.uint8)


def _dilated(mask: Mask, disk: NDArray[np.uint8]) -> Mask:
    return cv2.dilate(mask.astype(np.uint8), disk).astype(bool)


def _check_sizes(predicted: Mask, truth: Mask) -> None:
    if predicted.shape != truth.shape:
        raise ValueError(
            f"masks of different sizes: {predicted.shape} and {truth.shape} "
            "(height, width); scale one to the other's frame first"
        )
