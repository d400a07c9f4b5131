"""Converts between FiftyOne's relative shapes and pixels, and stores masks."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import fiftyone.core.utils as fou
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import Box, Mask, paste_mask, polygons_to_mask
from fiftyone_regioncap.dataset.store import Document

POINT_SIGNS = ("sam_labels", "sam2_labels")
"""Attributes of a Keypoint with one number a point: 1 on the object, 0 off it. These
are the names that FiftyOne's own SAM models read."""

_LISTS = ("detections", "polylines", "keypoints")
_SNAP = 1e-6  # pixels; relative coordinates in float64 are far more exact than this

# FiftyOne's level 6 takes five times as long for two thirds of the bytes, and was half
# of the time that writing a frame takes.
_ZLIB_LEVEL = 3


@dataclass(frozen=True)
class Shape:
    """Geometry of a label in pixels.

    Attributes:
        box: Edges of the box; None for points.
        mask: Mask, bool (H, W); None where the label has none.
        points: Points as x, y, float (N, 2); None for others than points.
        point_signs: Whether each point is on the object, bool (N,).
    """

    box: Box | None = None
    mask: Mask | None = None
    points: NDArray[np.float64] | None = None
    point_signs: NDArray[np.bool_] | None = None


def labels_of(value: Document | None) -> list[Document]:
    """Returns the labels of a field's value, a list of labels or a single one."""
    if not value:
        return []
    for name in _LISTS:
        if name in value:
            return value[name] or []
    return [value]


def relative_box(box: Box, height: int, width: int) -> list[float]:
    """Converts pixel edges to FiftyOne's relative [x, y, width, height]."""
    x1, y1, x2, y2 = box
    return [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]


def pixel_box(relative: list[float], height: int, width: int) -> Box:
    """Returns the inverse of :func:`relative_box`; whole pixels come back as such."""
    x, y, w, h = relative
    return (
        _snapped(x * width),
        _snapped(y * height),
        _snapped((x + w) * width),
        _snapped((y + h) * height),
    )


def _snapped(edge: float) -> float:
    if not math.isfinite(edge):
        return edge
    whole = round(edge)
    return float(whole if abs(edge - whole) < _SNAP else edge)


def shape_of(
    label: Document, height: int, width: int, *, sign: bool = True
) -> Shape | None:
    """Reads the geometry of a label.

    A Detection is its mask where it has one that isn't empty, else its box. A Polyline
    that is filled or closed is what it encloses; an open one is a scribble, whose
    vertices are points on the object. NaN points of a Keypoint or a scribble are left
    out; those on the right and bottom edge (1.0) belong to the last pixel.

    Args:
        label: Detection, Polyline or Keypoint as stored.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        sign: Whether points that don't say it themselves are on the object.

    Returns:
        None when there is nothing: no box, no vertex, or only NaN points.

    Raises:
        FieldError: When a mask on disk can't be read, a box has a number that isn't
            finite, a polygon has fewer than three vertices, or the signs are not one
            1 or 0 for each point.
    """
    kind = label["_cls"]
    if kind == "Detection":
        return _detection_shape(label, height, width)
    if kind == "Polyline":
        return _polyline_shape(label, height, width, sign)
    return _keypoint_shape(label, height, width, sign)


def _detection_shape(label: Document, height: int, width: int) -> Shape | None:
    if not label.get("bounding_box"):
        return None
    box = pixel_box(label["bounding_box"], height, width)
    if not np.isfinite(box).all():
        raise FieldError(
            f"the box {label['bounding_box']} has a number that is not finite; draw it "
            "anew"
        )
    mask = stored_mask(label)
    if mask is not None and mask.any():
        return Shape(box=box, mask=paste_mask(mask, box, height, width))
    return Shape(box=box)


def _polyline_shape(
    label: Document, height: int, width: int, sign: bool
) -> Shape | None:
    outlines = [
        np.asarray(points, dtype=np.float64)
        for points in label.get("points") or []
        if points
    ]
    if not outlines:
        return None
    if not (label.get("filled") or label.get("closed")):
        points = np.concatenate(outlines)
        return _points(points, np.full(len(points), sign), height, width)
    areas = [
        points * (width, height)
        for points in outlines
        if len(points) > 2 and np.isfinite(points).all()
    ]
    if not areas:
        raise FieldError(
            "a polygon needs three vertices with finite coordinates; draw its outline, "
            "or an open line to mark points"
        )
    corners = np.concatenate(areas)
    (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    mask = polygons_to_mask(areas, height, width)
    return Shape(box=(x1, y1, x2, y2), mask=mask if mask.any() else None)


def _keypoint_shape(
    label: Document, height: int, width: int, sign: bool
) -> Shape | None:
    points = np.asarray(label.get("points") or [], dtype=np.float64).reshape(-1, 2)
    signs = point_signs(label)
    if signs is None:
        signs = np.full(len(points), sign)
    if len(signs) != len(points):
        raise FieldError(
            f"a keypoint has {len(points)} points but {len(signs)} signs in "
            f"{POINT_SIGNS[0]!r}; give one a point, 1 for on the object, 0 for off it"
        )
    return _points(points, signs, height, width)


def point_signs(label: Document) -> NDArray[np.bool_] | None:
    """Returns whether each point of a Keypoint is on the object, bool (N,).

    Returns:
        None when the label doesn't say it.

    Raises:
        FieldError: When a sign is neither 1 nor 0.
    """
    given: Any = next((label[key] for key in POINT_SIGNS if label.get(key)), None)
    if given is None:
        return None
    values = given if isinstance(given, list) else [given]
    wrong = [value for value in values if isinstance(value, str) or value not in (0, 1)]
    if wrong:
        raise FieldError(
            f"a keypoint has {wrong[0]!r} in {POINT_SIGNS[0]!r}; give 1 for a point on "
            "the object, 0 for one off it"
        )
    return np.asarray(values, dtype=bool)


def _points(
    points: NDArray[np.float64], signs: NDArray[np.bool_], height: int, width: int
) -> Shape | None:
    """Returns points in pixels with their signs; None when none is known."""
    known = np.isfinite(points).all(axis=1)
    if not known.any():
        return None
    pixels = points[known] * (width, height)
    size = np.array([width, height])
    pixels = np.where(abs(pixels - size) < _SNAP, size - 0.5, pixels)
    return Shape(points=pixels, point_signs=signs[known])


def inline_mask(mask: Mask) -> bytes:
    """Encodes a cropped mask as FiftyOne's database does: ``numpy.save``, zlib."""
    with io.BytesIO() as buffer:
        np.save(buffer, mask, allow_pickle=False)
        return zlib.compress(buffer.getvalue(), _ZLIB_LEVEL)


def stored_mask(label: Document) -> Mask | None:
    """Returns a Detection's cropped mask, bool (h, w), from the database or from disk.

    Returns:
        None when it has none.

    Raises:
        FieldError: When the array is damaged, or the file isn't there or is no image.
    """
    inline = label.get("mask")
    mask: NDArray[Any] | None
    if inline is not None:
        try:
            mask = fou.deserialize_numpy_array(inline)
        except (ValueError, EOFError, zlib.error) as error:
            raise FieldError(f"its mask is damaged ({error}); draw it anew") from error
    elif label.get("mask_path"):
        mask = cv2.imread(label["mask_path"], cv2.IMREAD_UNCHANGED)
        if mask is None:
            raise FieldError(
                f"the mask {label['mask_path']} is not there or no image; restore the "
                "file, or remove `mask_path` from its label to use the box"
            )
    else:
        return None
    return (mask.any(axis=2) if mask.ndim == 3 else mask).astype(bool)


def save_mask(mask: Mask, path: Path) -> None:
    """Writes a cropped mask as a PNG of 0 and 255; a reader never sees half a file.

    Raises:
        OSError: When the disk is full or the folder can't be written.
    """
    _, png = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(png.tobytes())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sync_masks(paths: Collection[Path]) -> None:
    """Waits until files of masks outlast a power loss; those that are gone don't count.

    Args:
        paths: The files.
    """

    def sync(path: Path) -> None:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    # Several at once, of which the disk makes one write.
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(sync, [*paths, *{path.parent for path in paths}]):
            pass
