"""Estimation of the camera's motion between frames from the static background."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame, Mask

_WIDTH = 640  # pixels; enough for a tenth of a percent of the frame's width
_NARROWEST = 31  # pixels at _WIDTH; the size of what a descriptor looks at
_FEATURES = 1500
_RATIO = 0.8  # of the nearest to the second nearest descriptor (Lowe, 2004)
_REPROJECTION = 2.5  # pixels at _WIDTH
_INLIERS = 15
_INLIER_SHARE = 0.3
_SPREAD = 0.3  # of the frame's width or height


def camera_steps(
    frames: Sequence[Frame], masks: Sequence[Mask]
) -> list[NDArray[np.float64] | None]:
    """Estimates the camera's motion from each frame to the next.

    ORB features outside the object are matched and a similarity (shift, turn, zoom)
    is fitted with RANSAC, so that other moving things don't count as background unless
    they fill most of the picture.

    Args:
        frames: T images of one size, each uint8 (H, W, 3) RGB.
        masks: T masks of the object to leave out, each bool (H, W).

    Returns:
        T - 1 matrices, each float64 (2, 3), that take a pixel position in frame k + 1
        to where the same point of the background is in frame k. None where there is
        too little texture or agreement to estimate it.
    """
    if len(frames) < 2:
        return []
    scale = min(_WIDTH / frames[0].shape[1], 1.0)
    if min(frames[0].shape[:2]) * scale < _NARROWEST:
        return [None] * (len(frames) - 1)
    detector = cv2.ORB.create(nfeatures=_FEATURES, fastThreshold=5)
    features = [
        _features(detector, frame, mask, scale)
        for frame, mask in zip(frames, masks, strict=True)
    ]
    height, width = frames[0].shape[:2]
    steps = []
    for before, after in pairwise(features):
        step = _similarity(after, before, (width * scale, height * scale))
        if step is not None:
            step[:, 2] /= scale
        steps.append(step)
    return steps


_Features: TypeAlias = tuple[NDArray[np.float32], NDArray[np.uint8] | None]


def _features(detector: cv2.ORB, frame: Frame, mask: Mask, scale: float) -> _Features:
    """Returns positions (N, 2) at the reduced size and descriptors (N, 32)."""
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    size = (round(gray.shape[1] * scale), round(gray.shape[0] * scale))
    gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    object_mask = cv2.resize(mask.astype(np.uint8), size)
    # Descriptors reach beyond their point, so keep some distance from the object.
    near = cv2.dilate(object_mask, np.ones((3, 3), np.uint8), iterations=6)
    points, descriptors = detector.detectAndCompute(gray, (1 - near) * 255)
    return np.array([point.pt for point in points], np.float32).reshape(
        -1, 2
    ), descriptors


def _similarity(
    source: _Features, target: _Features, size: tuple[float, float]
) -> NDArray[np.float64] | None:
    points, descriptors = source
    target_points, target_descriptors = target
    if descriptors is None or target_descriptors is None or len(target_points) < 2:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(
        descriptors, target_descriptors, k=2
    )
    good = [best for best, second in pairs if best.distance < _RATIO * second.distance]
    if len(good) < _INLIERS:
        return None
    start = points[[match.queryIdx for match in good]]
    end = target_points[[match.trainIdx for match in good]]
    matrix, inliers = cv2.estimateAffinePartial2D(
        start, end, method=cv2.RANSAC, ransacReprojThreshold=_REPROJECTION
    )
    if matrix is None:
        return None
    agreeing = start[inliers.ravel().astype(bool)]
    enough = len(agreeing) >= max(_INLIERS, _INLIER_SHARE * len(good))
    # A background is all around; what agrees in one corner only is something in it.
    spread = np.ptp(agreeing, axis=0) / size if len(agreeing) else np.zeros(2)
    return matrix if enough and spread.max() >= _SPREAD else None
