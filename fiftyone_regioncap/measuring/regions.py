"""Measurement of a region's visibility, colors, position and motion, without a model.

Motion is the object's own: the camera's motion between the sampled frames is estimated
from the background and taken out, so that a still object filmed by a panning camera is
still. Where the background doesn't tell the camera's motion, nothing is said of the
object's. Depth is only seen as a change of size, so an object that comes closer and a
camera that does are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.measurements import Measurements, Side
from fiftyone_regioncap.core.types import Box, Mask, RegionClip, box_of_mask
from fiftyone_regioncap.measuring.camera import camera_steps
from fiftyone_regioncap.measuring.colors import color_shares

STILL_FRAME = 0.02
"""Own motion below this share of the frame's width is none ..."""

STILL_OBJECT = 0.15
"""... and so is one below this share of the object's size."""

GROWTH = 1.3
"""Factor of size from which an object comes closer or goes away."""

_TURN = np.deg2rad(90)
_TOUCH = 0.004  # of the frame's size; nearer to its edge than this is at it
_CROSSED = 0.2  # of the object's extent, to say that it crosses the frame's edge
_DIP = 0.8  # of the area before and after, below which an object is partly hidden
_TREND = 0.8  # rank correlation of size with time
_JUMP = 0.5  # of the whole change of size, in one step: hidden, not farther away

_DIRECTIONS = (
    "right",
    "down and right",
    "down",
    "down and left",
    "left",
    "up and left",
    "up",
    "up and right",
)


def measure(clip: RegionClip) -> Measurements:
    """Measures the object of a clip.

    Visibility and the frame's edges are judged on every frame of the clip's track if
    there is one, all else on the sampled frames.

    Args:
        clip: Clip of one object; empty masks are skipped.

    Returns:
        The measurements, all None or empty if all masks are empty.

    Raises:
        ValueError: If frames, masks and indices differ in number.
    """
    sampled = {
        index: (frame, mask)
        for index, frame, mask in zip(
            clip.frame_indices, clip.frames, clip.masks, strict=True
        )
        if mask.any()
    }
    if not sampled:
        return Measurements()
    indices = np.array(list(sampled), dtype=np.int64)
    frames = [frame for frame, _ in sampled.values()]
    masks = [mask for _, mask in sampled.values()]
    boxes = np.array([box_of_mask(mask) for mask in masks], dtype=np.float64)
    height, width = masks[0].shape
    visible, seen_boxes = _visibility(clip, indices, boxes)
    motion = _Motion()
    if clip.fps and len(frames) > 1:
        seconds = float(indices[-1] - indices[0]) / clip.fps
        motion = _motion(camera_steps(frames, masks), masks, boxes, seconds)
    return Measurements(
        first_frame=int(visible[0]),
        last_frame=int(visible[-1]),
        visible_fraction=len(visible) / (clip.support[1] - clip.support[0] + 1),
        visible_spans=_spans(visible),
        mean_area=float(np.mean([mask.mean() for mask in masks])),
        colors=color_shares(frames, masks),
        first_place=place(tuple(seen_boxes[0]), width, height),
        last_place=place(tuple(seen_boxes[-1]), width, height),
        speed=motion.speed,
        direction=motion.direction,
        depth=motion.depth,
        turns=motion.turns,
        camera_shift=motion.camera_shift,
        enters=_crossed_edge(seen_boxes, width, height),
        leaves=_crossed_edge(seen_boxes[::-1], width, height),
    )


def place(box: Box, width: int, height: int) -> str:
    """Names the position of a box, by the third of the frame that its center is in.

    Args:
        box: Box of the object in pixel edges.
        width: Width of the frame in pixels.
        height: Height of the frame in pixels.

    Returns:
        "middle", "left", "right", "top", "bottom", "upper left", "lower right", ...
    """
    x1, y1, x2, y2 = box
    column = ("left", "", "right")[_third((x1 + x2) / 2 / width)]
    row = ("upper", "", "lower")[_third((y1 + y2) / 2 / height)]
    if not column:
        return {"upper": "top", "lower": "bottom"}.get(row, "middle")
    return f"{row} {column}".strip()


def _third(share: float) -> int:
    return min(max(int(share * 3), 0), 2)


def _visibility(
    clip: RegionClip, indices: NDArray[np.int64], boxes: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the frames on which the object is visible, and its known boxes."""
    if clip.track is not None and clip.track.frames.size:
        first, last = clip.support
        inside = (clip.track.frames >= first) & (clip.track.frames <= last)
        if inside.any():
            return clip.track.frames[inside], clip.track.boxes[inside]
    return np.arange(indices[0], indices[-1] + 1), boxes


def _spans(visible: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    runs = np.split(visible, np.flatnonzero(np.diff(visible) > 1) + 1)
    return tuple((int(run[0]), int(run[-1])) for run in runs)


def _touched(
    box: NDArray[np.float64], width: int, height: int
) -> tuple[bool, bool, bool, bool]:
    """Returns which edges of the frame a box reaches: left, top, right, bottom."""
    x, y = max(_TOUCH * width, 1), max(_TOUCH * height, 1)
    x1, y1, x2, y2 = box.tolist()
    return x1 <= x, y1 <= y, x2 >= width - x, y2 >= height - y


def _crossed_edge(
    boxes: NDArray[np.float64], width: int, height: int, within: int = 24
) -> Side | None:
    """Finds the edge of the frame over which an object enters at the start.

    An object cut by an edge at first has come over it when the least of it is seen at
    first, and its far side then moves away from that edge by a good part of its extent.
    Given in reverse, the boxes tell where it goes out.

    Args:
        boxes: Boxes in pixel edges in temporal order, (N, 4).
        width: Width of the frame in pixels.
        height: Height of the frame in pixels.
        within: Number of boxes to look at.
    """
    touched = _touched(boxes[0], width, height)
    crossed: dict[Side, float] = {}
    sides: tuple[tuple[Side, int], ...] = (
        ("left", 0),
        ("top", 1),
        ("right", 2),
        ("bottom", 3),
    )
    for side, edge in sides:
        far = (edge + 2) % 4
        if not touched[edge] or touched[far]:
            continue
        later = boxes[:within]
        extent = np.abs(later[:, far] - later[:, edge])
        later = later[: int(extent.argmax()) + 1]
        extent = extent[: len(later)]
        if extent[0] > extent.min() / (1 - _CROSSED / 2):
            continue
        away = np.abs(later[:, far] - boxes[0, edge]) - extent[0]
        crossed[side] = float((away / np.maximum(extent, 1)).max())
    side_of_most = max(crossed, key=lambda side: crossed[side], default=None)
    if side_of_most is None or crossed[side_of_most] < _CROSSED:
        return None
    return side_of_most


def _centroid(mask: Mask) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


@dataclass(frozen=True)
class _Motion:
    """The motion measurements of :class:`Measurements`."""

    speed: float | None = None
    direction: str | None = None
    depth: Literal["towards", "away"] | None = None
    turns: int | None = None
    camera_shift: float | None = None


def _motion(
    steps: list[NDArray[np.float64] | None],
    masks: Sequence[Mask],
    boxes: NDArray[np.float64],
    seconds: float,
) -> _Motion:
    """Transforms the object's path into the first frame's view and measures it.

    Args:
        steps: T - 1 camera steps, see :func:`camera_steps`.
        masks: T masks of the object, none empty.
        boxes: Boxes of the object in pixel edges, (T, 4).
        seconds: Time between the first frame and the last in seconds.
    """
    height, width = masks[0].shape
    views = [np.eye(3)]
    for step in steps:
        if step is None:
            return _Motion()
        views.append(views[-1] @ np.vstack([step, [0, 0, 1]]))
    scales = np.sqrt([abs(np.linalg.det(view[:2, :2])) for view in views])
    areas = np.array([mask.sum() for mask in masks]) * scales**2
    whole = np.flatnonzero(~_dips(areas))
    centers = np.array([_centroid(mask) for mask in masks])
    path = [np.zeros(2)]
    for before, after in pairwise(whole):
        moved = _displacement(
            [views[before], views[after]],
            boxes[[before, after]],
            centers[[before, after]],
            (width, height),
        )
        if moved is None:
            return _Motion()
        path.append(path[-1] + moved)
    extent = float(np.sqrt(np.median(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))))
    tolerance = max(STILL_FRAME * width, STILL_OBJECT * extent)
    legs = np.diff(_simplify(np.array(path), tolerance), axis=0)
    length = float(np.linalg.norm(legs, axis=1).sum())
    free = [k for k in whole if not any(_touched(boxes[k], width, height))]
    sizes = (boxes[free, 2:] - boxes[free, :2]) * scales[free, None]
    depth = _depth(sizes, areas[free])
    middle = np.array([width / 2, height / 2, 1])
    shift = float(np.linalg.norm((views[-1] @ middle - middle)[:2])) / width
    if length < tolerance:
        return _Motion(0.0, depth or "still", depth, 0, shift)
    return _Motion(
        length / width / seconds,
        _direction(legs, length, depth, extent),
        depth,
        _turns(legs, tolerance),
        shift,
    )


def _dips(areas: NDArray[np.float64], reach: int = 3) -> NDArray[np.bool_]:
    """Marks the areas that are smaller than those shortly before and after."""
    dips = np.zeros(len(areas), dtype=bool)
    for k in range(1, len(areas) - 1):
        before = areas[max(k - reach, 0) : k].max()
        after = areas[k + 1 : k + 1 + reach].max()
        dips[k] = areas[k] < _DIP * min(before, after)
    return dips


def _displacement(
    views: Sequence[NDArray[np.float64]],
    boxes: NDArray[np.float64],
    centers: NDArray[np.float64],
    size: tuple[int, int],
) -> NDArray[np.float64] | None:
    """Computes the object's own motion between two frames in the first view's pixels.

    Where the frame's edge cuts the object, its center lags behind, so that the sides
    that are free in both frames are followed instead.

    Args:
        views: Two matrices (3, 3) from the frames' pixels to the first view's.
        boxes: Boxes on the two frames in pixel edges, (2, 4).
        centers: Centers of the boxes as x, y in pixels, (2, 2).
        size: Size of the frame in pixels, (width, height).

    Returns:
        (2,) of x, y; an axis with no free side counts as no motion along it. None when
        neither axis has one.
    """

    def moved(points: NDArray[np.float64]) -> NDArray[np.float64]:
        start, end = (
            view[:2, :2] @ point + view[:2, 2]
            for view, point in zip(views, points, strict=True)
        )
        return end - start

    cut = np.any([_touched(box, *size) for box in boxes], axis=0)
    if not cut.any():
        return moved(centers)
    if cut.all():
        return None
    motion = np.zeros(2)
    for axis in range(2):
        free = [edge for edge in (axis, axis + 2) if not cut[edge]]
        for edge in free:
            points = (boxes[:, :2] + boxes[:, 2:]) / 2
            points[:, axis] = boxes[:, edge]
            motion[axis] += moved(points)[axis] / len(free)
    return motion


def _simplify(path: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Reduces a path to its corners (N, 2), by Douglas and Peucker (1973)."""
    points = path.astype(np.float32).reshape(-1, 1, 2)
    return cv2.approxPolyDP(points, tolerance, False).reshape(-1, 2).astype(np.float64)


def _direction(
    legs: NDArray[np.float64], length: float, depth: str | None, extent: float
) -> str:
    net = legs.sum(axis=0)
    distance = float(np.linalg.norm(net))
    if distance < length / 2:
        return "back and forth"
    if depth is not None and distance < extent / 2:
        return depth
    eighth = round(float(np.arctan2(net[1], net[0])) / (np.pi / 4)) % 8
    return _DIRECTIONS[eighth]


def _turns(legs: NDArray[np.float64], tolerance: float) -> int:
    """Counts sharp corners between legs that are both too long to be jitter."""
    long = legs[np.linalg.norm(legs, axis=1) >= 2 * tolerance]
    angles = np.arctan2(long[:, 1], long[:, 0])
    bends = np.abs((np.diff(angles) + np.pi) % (2 * np.pi) - np.pi)
    return int((bends > _TURN).sum())


def _depth(
    sizes: NDArray[np.float64], areas: NDArray[np.float64]
) -> Literal["towards", "away"] | None:
    """Decides whether an object steadily grows or shrinks in width and height.

    In both, because its own turning changes one of them more; steadily, because what
    hides it, or its own posture, changes them by jumps or to and fro.

    Args:
        sizes: Widths and heights without camera zoom, (N, 2), where the frame's edge
            doesn't cut the object.
        areas: Areas of its mask without camera zoom, (N,).
    """
    if len(areas) < 4:
        return None
    third = len(areas) // 3
    sides, area = np.log(sizes), np.log(areas)
    growth = np.median(sides[-third:], axis=0) - np.median(sides[:third], axis=0)
    if (np.abs(growth) < np.log(GROWTH)).any() or growth[0] * growth[1] < 0:
        return None
    ranks = np.argsort(np.argsort(area))
    trend = np.corrcoef(ranks, np.arange(len(ranks)))[0, 1] * np.sign(growth[0])
    jump = np.abs(np.diff(area)).max()
    if trend < _TREND or jump > _JUMP * np.abs(growth).sum():
        return None
    return "towards" if growth[0] > 0 else "away"
