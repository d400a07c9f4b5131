"""Regions of images and videos: prompts, masks, tracks, clips and captions.

One coordinate rule for the whole package: x grows to the right, y downwards, in
pixels, with pixel (column c, row r) covering the square [c, c + 1) x [r, r + 1).
Boxes are ``(x1, y1, x2, y2)`` edges, so that the box of a single pixel (c, r) is
``(c, r, c + 1, r + 1)``. Frames are counted from 0 here; only :mod:`labels` knows
FiftyOne's 1-based frame numbers and relative boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.measurements import Measurements

Frame: TypeAlias = NDArray[np.uint8]
"""An RGB image: uint8 (H, W, 3)."""

Mask: TypeAlias = NDArray[np.bool_]
"""A full-frame mask: bool (H, W)."""

Box: TypeAlias = tuple[float, float, float, float]
"""Pixel edges (x1, y1, x2, y2)."""


@dataclass(frozen=True)
class RLE:
    """A run-length encoded mask in COCO's compressed form.

    Attributes:
        size: Size in pixels, (height, width).
        counts: COCO's compressed column-major run lengths.
    """

    size: tuple[int, int]
    counts: bytes

    @classmethod
    def encode(cls, mask: Mask) -> RLE:
        """Encodes a mask, bool (H, W), without loss."""
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        height, width = encoded["size"]
        return cls((int(height), int(width)), encoded["counts"])

    def decode(self) -> Mask:
        """Decodes the mask, bool (H, W)."""
        coco = {"size": list(self.size), "counts": self.counts}
        return coco_mask.decode(coco).astype(bool)

    def area(self) -> int:
        """Counts the pixels of the mask."""
        coco = {"size": list(self.size), "counts": self.counts}
        return int(coco_mask.area(coco))


def run_lengths(counts: str) -> list[int]:
    """Decodes COCO's compressed run lengths.

    pycocotools doesn't check them, and writes past its memory when they are damaged.

    Raises:
        ValueError: If they are damaged.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode("ascii", "replace"):
        digit = character - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError("the run lengths of a mask are damaged")
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError("the run lengths of a mask are damaged")
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError("the run lengths of a mask end too early")
    return runs


def box_of_mask(mask: Mask) -> Box | None:
    """Computes the tight box of a mask, bool (H, W); None if it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return (
        float(columns[0]),
        float(rows[0]),
        float(columns[-1] + 1),
        float(rows[-1] + 1),
    )


def crop_mask(mask: Mask) -> tuple[Box, Mask] | None:
    """Crops a full-frame mask to its tight box.

    Args:
        mask: Object mask, bool (H, W).

    Returns:
        The box in pixel edges and the cropped mask, bool (y2 - y1, x2 - x1), or None
        if the mask is empty.
    """
    box = box_of_mask(mask)
    if box is None:
        return None
    x1, y1, x2, y2 = (int(edge) for edge in box)
    return box, np.ascontiguousarray(mask[y1:y2, x1:x2])


def paste_mask(cropped: Mask, box: Box, height: int, width: int) -> Mask:
    """Pastes a cropped mask into an empty frame; the inverse of :func:`crop_mask`.

    A crop whose size is not the box's (masks from other tools) is resized to the box by
    nearest neighbor, and what lies outside the frame is cut off.

    Args:
        cropped: Cropped mask, bool (h, w).
        box: Position of the cropped mask in pixel edges, rounded to whole pixels.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.

    Returns:
        bool (height, width).
    """
    x1, y1, x2, y2 = (round(edge) for edge in box)
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    full = np.zeros((height, width), dtype=bool)
    top, left = max(y1, 0), max(x1, 0)
    bottom, right = min(y2, height), min(x2, width)
    if top < bottom and left < right:
        rows = _nearest(top - y1, bottom - y1, y2 - y1, cropped.shape[0])
        columns = _nearest(left - x1, right - x1, x2 - x1, cropped.shape[1])
        full[top:bottom, left:right] = cropped[rows][:, columns]
    return full


def _nearest(start: int, stop: int, length: int, source: int) -> slice | NDArray:
    """Returns which of ``source`` pixels are shown by a range of ``length`` pixels.

    Only the range is computed: a box may be many times as large as its frame.
    """
    if length == source:
        return slice(start, stop)
    places = start + np.arange(stop - start, dtype=np.float64)
    return np.minimum(np.floor(places * (source / length)), source - 1).astype(int)


def polygons_to_mask(
    polygons: Sequence[NDArray[np.floating]], height: int, width: int
) -> Mask:
    """Rasterizes polygons to a mask by the even-odd rule.

    A pixel is inside if its center is. Drawing libraries also set the pixels under the
    outline, which makes every mask grow; this one is exact.

    Args:
        polygons: Polygons, each float (N, 2) of x, y in pixels, N >= 3; parts outside
            the frame are cut off.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.

    Returns:
        bool (height, width).
    """
    # Each outline crossing flips the parity of all pixels to its right in that row.
    flips = np.zeros((height, width + 1), dtype=np.int32)
    for polygon in polygons:
        starts = np.asarray(polygon, dtype=np.float64)
        ends = np.roll(starts, -1, axis=0)
        upper = np.where((starts[:, 1] < ends[:, 1])[:, None], starts, ends)
        lower = np.where((starts[:, 1] < ends[:, 1])[:, None], ends, starts)
        first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
        spans = last - first
        edges = np.repeat(np.arange(len(starts)), spans)
        rows = np.arange(spans.sum()) + np.repeat(
            first - np.cumsum(spans) + spans, spans
        )
        (x1, y1), (x2, y2) = upper[edges].T, lower[edges].T
        crossings = x1 + (rows + 0.5 - y1) * (x2 - x1) / (y2 - y1)
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
        np.add.at(flips, (rows, columns), 1)
    return (np.cumsum(flips, axis=1)[:, :width] & 1).astype(bool)


@dataclass(frozen=True)
class Prompt:
    """A prompt that marks an object on one frame.

    At least one of ``box``, ``points`` and ``mask`` is given. Several prompts may mark
    the same object, on the same frame or on others.

    Attributes:
        object_id: The caller's number of the object; results carry it.
        frame: 0-based frame index.
        box: Box in pixel edges, or None.
        points: Points as x, y in pixels, float (N, 2), or None.
        point_signs: Signs of the points, bool (N,), True for points on the object,
            False for points off it; None if all are on it.
        mask: Mask of the frame's size, bool (H, W), or None.
        label: The object's class or name; None if unknown.
    """

    object_id: int
    frame: int
    box: Box | None = None
    points: NDArray[np.float64] | None = None
    point_signs: NDArray[np.bool_] | None = None
    mask: Mask | None = None
    label: str | None = None

    @property
    def name(self) -> str:
        """Names the prompt for people: its object, and its frame counted from 1."""
        return f"prompt of object {self.object_id} on frame {self.frame + 1}"

    @property
    def signs(self) -> NDArray[np.bool_]:
        """Returns which points are on the object, bool (N,); (0,) without points."""
        if self.points is None or self.point_signs is None:
            return np.ones(0 if self.points is None else len(self.points), dtype=bool)
        return np.asarray(self.point_signs, dtype=bool)

    @property
    def negative_only(self) -> bool:
        """Returns whether it only says where the object is not: a correction."""
        alone = self.points is not None and self.box is None and self.mask is None
        return alone and not self.signs.any()

    def check(self, height: int, width: int, frame_count: int) -> None:
        """Checks that the prompt fits a video.

        Args:
            height: Height of the video's frames in pixels.
            width: Width of the video's frames in pixels.
            frame_count: Number of frames of the video.

        Raises:
            PromptError: If the frame is past the end; the box has no area or lies
                outside the frame; a point lies outside it; the mask is empty or of
                another size; or nothing is given at all.
        """
        who = self.name
        if not 0 <= self.frame < frame_count:
            raise PromptError(
                f"{who}: the video has frames 1 to {frame_count}; "
                "give a frame inside it"
            )
        if self.box is None and self.points is None and self.mask is None:
            raise PromptError(f"{who}: give a box, points or a mask")
        if self.box is not None:
            self._check_box(who, self.box, height, width)
        if self.points is not None:
            self._check_points(who, self.points, height, width)
        if self.mask is not None:
            if self.mask.shape != (height, width):
                raise PromptError(
                    f"{who}: the mask is {self.mask.shape[1]}x{self.mask.shape[0]}, "
                    f"the frame {width}x{height}; give a mask of the frame's size"
                )
            if not self.mask.any():
                raise PromptError(f"{who}: the mask is empty; mark the object on it")

    @staticmethod
    def _check_box(who: str, box: Box, height: int, width: int) -> None:
        x1, y1, x2, y2 = box
        if not np.isfinite(box).all() or x2 <= x1 or y2 <= y1:
            raise PromptError(
                f"{who}: the box {box} has no area; give x1 < x2 and y1 < y2"
            )
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            raise PromptError(
                f"{who}: the box {box} lies outside the {width}x{height} frame; "
                "boxes are x1,y1,x2,y2 in pixels"
            )

    def _check_points(
        self, who: str, points: NDArray[np.float64], height: int, width: int
    ) -> None:
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
            raise PromptError(f"{who}: points are (N, 2) of x, y; got {points.shape}")
        if self.point_signs is not None and len(self.point_signs) != len(points):
            raise PromptError(
                f"{who}: {len(points)} points but {len(self.point_signs)} signs"
            )
        x, y = points[:, 0], points[:, 1]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        if not inside.all():
            raise PromptError(
                f"{who}: point {points[~inside][0].tolist()} lies outside the "
                f"{width}x{height} frame; points are x, y in pixels"
            )


@dataclass(frozen=True)
class ObjectMask:
    """The mask of one object on one frame.

    Attributes:
        mask: Mask of the video's size, bool (H, W); None where the object is not
            visible.
        score: The propagator's confidence, in [0, 1]; low where the object is lost.
    """

    mask: Mask | None
    score: float


@dataclass(frozen=True)
class FrameMasks:
    """The masks of all objects on one frame.

    Attributes:
        frame: 0-based frame index.
        objects: Masks by object id; an object that is not visible has None as mask.
        prompted: Ids of the objects that were prompted on this frame.
    """

    frame: int
    objects: Mapping[int, ObjectMask]
    prompted: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Track:
    """The boxes of one object over a video, light enough for long videos.

    Attributes:
        object_id: The caller's number of the object.
        frames: Indices of the frames where it is visible, int (V,), 0-based, ascending.
        boxes: Boxes on those frames in pixel edges, float (V, 4).
        scores: Confidences on those frames in [0, 1], float (V,).
        label: The object's class or name; None if unknown.
        instance: Id of the track's ``fo.Instance``; None if it has none.
    """

    object_id: int
    frames: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    label: str | None = None
    instance: str | None = None


@dataclass(frozen=True)
class RegionClip:
    """Frames and masks of one object: the input of a captioner.

    Attributes:
        frames: T images, each uint8 (H, W, 3) RGB; clips of one video share them, so
            they are never written to.
        masks: T masks, each bool (H, W), none empty unless the input was bad.
        frame_indices: 0-based indices of the T frames, ascending; all 0 for images.
        label: The object's class or name; None if unknown.
        fps: Frames per second of the video; None for images.
        support: First and last frame that the caption describes, 0-based, inclusive.
        track: The track inside the support, for measurements that need every frame;
            None for images.
        measurements: Measurements of the object, if they were made already; else None.
        problem: Why the region can't be described, such as a label without a geometry;
            None when it can.
    """

    frames: Sequence[Frame]
    masks: Sequence[Mask]
    frame_indices: tuple[int, ...] = (0,)
    label: str | None = None
    fps: float | None = None
    support: tuple[int, int] = (0, 0)
    track: Track | None = None
    measurements: Measurements | None = None
    problem: str | None = None


Scored: TypeAlias = tuple[str, float]
"""A word or phrase and its score in [0, 1]."""


@dataclass(frozen=True)
class Caption:
    """A captioner's description of one clip.

    Attributes:
        text: The description; empty if there is an error.
        label: A short name of the object.
        confidence: Mean token probability in [0, 1]; None if the captioner has none.
        min_confidence: Lowest token probability over content words, in [0, 1].
        agreement: Agreement between repeated samples, in [0, 1]; None if not sampled.
        tags: Short labels with scores.
        attributes: Attributes such as ``"color:red"``, with scores.
        category: Best name in the user's class list, with its score.
        tokens: The number of tokens generated.
        error: Why there is no description; None when there is one.
        embedding: Embedding of the region, float32 (D,) of length 1 (see
            ``CaptionerInfo.space``); None if there is none.
    """

    text: str = ""
    label: str | None = None
    confidence: float | None = None
    min_confidence: float | None = None
    agreement: float | None = None
    tags: tuple[Scored, ...] = field(default=())
    attributes: tuple[Scored, ...] = field(default=())
    category: Scored | None = None
    tokens: int = 0
    error: str | None = None
    embedding: NDArray[np.float32] | None = field(
        default=None, repr=False, compare=False
    )
