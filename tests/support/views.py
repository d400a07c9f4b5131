"""Boxes of polygons as DynRefer's authors make them, for comparisons with theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fiftyone_regioncap.captioning.views import RegionBox


def polygons_box(
    polygons: Sequence[Sequence[float]], width: int, height: int
) -> RegionBox:
    """Computes the box around all polygons of a region, at least one pixel each way.

    Args:
        polygons: Polygons, each a flat list of x, y, x, y, ... in pixels.
        width: Width of the frame in pixels.
        height: Height of the frame in pixels.

    Returns:
        int64 where all numbers are whole ones by type, float64 otherwise.
    """
    points = np.concatenate([np.asarray(p).reshape(-1, 2) for p in polygons])
    (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
    x1, x2 = _at_least_a_pixel(x1, x2, width)
    y1, y2 = _at_least_a_pixel(y1, y2, height)
    return np.array([x1, y1, x2, y2], dtype=points.dtype)


def _at_least_a_pixel(first: float, last: float, limit: int) -> tuple[float, float]:
    if first >= last - 1:
        if last > 0:
            return last - 1, last
        if limit - first > 0:
            return first, first + 1
    return first, last
