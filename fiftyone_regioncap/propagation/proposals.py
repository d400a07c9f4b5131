"""Proposal of prompts: all objects that a segmenter finds on key frames.

A grid of points on each key frame, masks kept when the model is sure of them and they
are stable under its threshold (automatic mask generation, Kirillov et al., "Segment
Anything", 2023), each object prompted once, on the key frame where it is seen first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.core.types import Frame, Mask, Prompt, box_of_mask
from fiftyone_regioncap.propagation.base import Frames
from fiftyone_regioncap.propagation.histograms import hsv_histogram, overlap

POINTS_AT_ONCE = 32

_BINS = (12, 4, 4)


class Segmenter(Protocol):
    """Finds a mask for each point on a frame."""

    def encode(self, frame: Frame) -> Any:
        """Computes what :meth:`decode` needs of a frame, uint8 (H, W, 3) RGB."""

    def decode(
        self, encoded: Any, points: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Segments what is under each point.

        Args:
            encoded: The result of :meth:`encode` for the frame.
            points: Points as x, y in pixels of the frame, (N, 2).

        Returns:
            Logits (N, h, w) over the whole frame at any resolution, above 0 on the
            object; and their predicted IoU (N,) in [0, 1].
        """


PROPOSED = "object"
"""Label of what was found, until somebody knows what it is."""


@dataclass(frozen=True)
class ProposalOptions(Options):
    """Options that say what counts as an object."""

    every: int = option(30, "Search every this many frames.", unit="frames", minimum=1)
    grid: int = option(
        16, "Points along each side of the grid.", minimum=1, advanced=True
    )
    min_iou: float = option(
        0.8, "Lowest confidence of the segmenter.", minimum=0, maximum=1, advanced=True
    )
    min_stability: float = option(
        0.9,
        "Lowest IoU of the masks at logits -1 and 1.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    min_area: float = option(
        0.001,
        "Smallest area of an object, as a share of the frame.",
        minimum=0,
        maximum=1,
    )
    max_area: float = option(
        0.5,
        "Largest area of an object, as a share of the frame; larger is background.",
        minimum=0,
        maximum=1,
    )
    same_frame_iou: float = option(
        0.7,
        "Masks of one frame that overlap more are one object.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    same_object_iou: float = option(
        0.4,
        "Masks of successive searched frames that overlap more are one object.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    max_objects: int = option(
        32,
        "Greatest number of objects of a video or clip; the most confident ones are "
        "kept.",
        minimum=1,
    )


@dataclass(frozen=True)
class Proposal:
    """A mask that may be an object.

    Attributes:
        mask: Mask of the object, bool (H, W).
        score: Predicted IoU in [0, 1].
        colors: Color histogram inside the mask with a sum of 1, float32 (n,).
    """

    mask: Mask
    score: float
    colors: NDArray[np.float32]


def propose(
    frames: Frames,
    segmenter: Segmenter,
    options: ProposalOptions | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
) -> list[Prompt]:
    """Finds the objects of a video.

    Args:
        frames: Frames of the video.
        segmenter: Segmenter that finds the masks.
        options: Options that say what counts as an object; None for the defaults.
        start: First frame of interest, 0-based.
        stop: One past the last frame of interest; None for the end of the video.

    Returns:
        One mask prompt for each object, with ids from 1.
    """
    options = options or ProposalOptions()
    prompts: list[Prompt] = []
    last: list[Proposal] = []
    stop = len(frames) if stop is None else stop
    for index in range(start, stop, options.every):
        found = proposals(frames[index], segmenter, options)
        for proposal in found:
            if len(prompts) == options.max_objects:
                return prompts
            if not any(_same_object(proposal, other, options) for other in last):
                number = len(prompts) + 1
                prompts.append(
                    Prompt(number, index, mask=proposal.mask, label=PROPOSED)
                )
        # Objects hidden on this key frame may be back on the next.
        unseen = [
            other
            for other in last
            if not any(_same_object(proposal, other, options) for proposal in found)
        ]
        last = found + unseen
    return prompts


def proposals(
    frame: Frame, segmenter: Segmenter, options: ProposalOptions
) -> list[Proposal]:
    """Finds the objects of one frame, the most confident first."""
    candidates = sorted(
        _candidates(frame, segmenter, options), key=lambda c: c.score, reverse=True
    )
    kept: list[Proposal] = []
    for candidate in candidates:
        if all(
            mask_iou(candidate.mask, other.mask) <= options.same_frame_iou
            for other in kept
        ):
            kept.append(candidate)
    return kept


def _candidates(
    frame: Frame, segmenter: Segmenter, options: ProposalOptions
) -> Iterator[Proposal]:
    height, width = frame.shape[:2]
    encoded = segmenter.encode(frame)
    points = grid_points(options.grid, height, width)
    for first in range(0, len(points), POINTS_AT_ONCE):
        batch = points[first : first + POINTS_AT_ONCE]
        logits, ious = segmenter.decode(encoded, batch)
        for field, iou in zip(logits, ious, strict=True):
            share = float((field > 0).mean())
            if iou < options.min_iou or stability(field) < options.min_stability:
                continue
            if not options.min_area <= share <= options.max_area:
                continue
            mask = cv2.resize(field, (width, height)) > 0
            if mask.any():
                yield Proposal(mask, float(iou), hsv_histogram(frame, mask, _BINS))


def grid_points(side: int, height: int, width: int) -> NDArray[np.float64]:
    """Returns the centers of a grid of side x side cells, (side * side, 2) of x, y."""
    steps = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(steps * width, steps * height)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def stability(logits: NDArray[np.float32], offset: float = 1.0) -> float:
    """Returns the IoU of the masks at a higher and a lower threshold, in [0, 1]."""
    outer = int((logits > -offset).sum())
    return int((logits > offset).sum()) / outer if outer else 0.0


def mask_iou(one: Mask, other: Mask) -> float:
    """Returns the intersection over union of two masks; 0 when both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 0.0


def _same_object(one: Proposal, other: Proposal, options: ProposalOptions) -> bool:
    """Compares objects by place or, as they may have moved, by color and size."""
    if mask_iou(one.mask, other.mask) >= options.same_object_iou:
        return True
    areas = sorted((int(one.mask.sum()), int(other.mask.sum())))
    if areas[1] > 2 * areas[0]:
        return False
    alike = overlap(one.colors, other.colors) >= 0.75
    return alike and _distance(one.mask, other.mask) <= 0.3


def _distance(one: Mask, other: Mask) -> float:
    """Returns the distance of two masks' box centers, in diagonals of the frame."""
    centers = []
    for mask in (one, other):
        box = box_of_mask(mask)
        assert box is not None, "proposals are never empty"
        centers.append(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    return float(np.hypot(*np.subtract(centers[0], centers[1])) / np.hypot(*one.shape))
