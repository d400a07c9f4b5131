"""Nested views: a region seen through boxes of rising context.

A view interpolates between the region's own box (context 0) and the whole image
(context 1). Which contexts are worth looking at is decided by the image (those that
look least like the region itself), by the task, or by the caller. The rules are those
of DynRefer (arXiv 2405.16071), rounding included, because its checkpoints were trained
and published with them; any other captioner can use the same views as pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Box, Frame, Mask

RegionBox: TypeAlias = NDArray[np.int64] | NDArray[np.float64]
"""x1, y1, x2, y2 of a region in pixels, in the numeric type that it was given in."""

CANDIDATES: tuple[float, ...] = tuple((i + 1) / 10 for i in range(10))
"""The contexts that are chosen from; context 0 always comes first."""

HASH_SIZE = 224
"""Crops are resized to this before they are hashed, whatever the model's own size."""

HASH_SIDE = 8
"""The hash keeps this many rows and columns of the lowest frequencies."""

TASK_CONTEXTS: dict[str, tuple[float, ...]] = {
    "attributes": (0.1, 0.2, 0.3, 0.4, 0.5),
    "caption": (0.4, 0.5, 0.3, 0.2, 0.1),
}
"""The paper's task prior: contexts by task, best first, after context 0.

Attributes want little context (0.1), captions some (0.4 to 0.5), and more than 0.5
hurts every task. The paper gives no numbers for other tasks.
"""


@dataclass(frozen=True)
class NestedViews:
    """Represents one region of a frame, cropped with several amounts of context.

    Attributes:
        contexts: Amount of context of each view, in [0, 1]; the first is 0.
        crops: Pixel edges of the crops in the frame, int64 (V, 4).
        rois: Box of the region inside each crop as x1, y1, x2, y2 in whole pixels,
            float32 (V, 4).
        pictures: V pictures, each uint8 (h, w, 3) RGB.
    """

    contexts: tuple[float, ...]
    crops: NDArray[np.int64]
    rois: NDArray[np.float32]
    pictures: tuple[Frame, ...]


def nested_views(
    frame: Frame,
    region: Mask | Box | RegionBox,
    *,
    contexts: str | Sequence[float] = "image",
    count: int = 3,
    size: int | None = 224,
    gray: NDArray[np.uint8] | None = None,
) -> NestedViews:
    """Crops a region out of a frame with increasing context.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        region: A mask, bool (H, W), or a box in pixel edges. Of a mask, only the box is
            used.
        contexts: ``"image"`` to choose by the image, a task of
            :data:`TASK_CONTEXTS` to choose by the task, or the contexts themselves
            (each in [0, 1], the first one 0), which then also give the count.
        count: Number of views, the region's own included.
        size: Side in pixels of the square that crops are resized to, without keeping
            the aspect ratio, as DynRefer expects; None keeps their size.
        gray: :func:`to_gray` of the frame, where several regions share it.

    Raises:
        PromptError: When the region is empty, lies outside, is of another size than the
            frame, or the contexts are no contexts.
    """
    height, width = frame.shape[:2]
    box = region_box(region, width, height)
    if isinstance(contexts, str):
        if contexts == "image":
            gray = to_gray(frame) if gray is None else gray
            chosen = image_contexts(gray, box, count)
        else:
            chosen = task_contexts(contexts, count)
    else:
        chosen = given_contexts(contexts)
    boxes = [context_box(box, t, width, height) for t in chosen]
    crops = np.stack([whole_pixels(b, width, height) for b in boxes])
    # Views hold the region, also where it had to be widened to a pixel.
    crops[:, :2] = np.minimum(crops[:, :2], crops[0, :2])
    crops[:, 2:] = np.maximum(crops[:, 2:], crops[0, 2:])
    return NestedViews(
        contexts=chosen,
        crops=crops,
        rois=np.stack([roi_in_view(crops[0], crop, size) for crop in crops]),
        pictures=tuple(_cut(frame, crop, size) for crop in crops),
    )


def region_box(region: Mask | Box | RegionBox, width: int, height: int) -> RegionBox:
    """Returns the box of a region as DynRefer takes it.

    A box past the left or top edge is cut there (the authors' hash fails on it); past
    the right or bottom edge it is kept, as the authors do.

    Args:
        region: A mask, bool (H, W), or a box in pixel edges.
        width: Width of the frame in pixels.
        height: Height of the frame in pixels.

    Raises:
        PromptError: When there is nothing to look at.
    """
    box = np.asarray(region)
    if box.ndim == 2:
        if box.shape != (height, width):
            raise PromptError(
                f"the mask is {box.shape[1]}x{box.shape[0]}, the frame "
                f"{width}x{height}; give a mask of the frame's size"
            )
        box = mask_box(box)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < box[:2]).any():
        raise PromptError(
            f"{np.asarray(region).tolist()} is no box; give x1, y1, x2, y2 in pixels "
            "with x1 < x2 and y1 < y2"
        )
    if box[0] >= width or box[1] >= height or box[2] < 0 or box[3] < 0:
        raise PromptError(
            f"the box {box.tolist()} lies outside the {width}x{height} frame; boxes "
            "are x1, y1, x2, y2 in pixels"
        )
    return np.concatenate([np.maximum(box[:2], 0), box[2:]])


def mask_box(mask: Mask) -> NDArray[np.int64]:
    """Returns the first and last column and row of a mask, both inside it.

    This is one pixel less on the right and at the bottom than
    :func:`fiftyone_regioncap.core.types.box_of_mask`, as in the authors' code.

    Args:
        mask: Object mask, bool (H, W).

    Raises:
        PromptError: When the mask is empty.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        raise PromptError("the mask is empty; mark the object on it")
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.int64)


def context_box(
    region: RegionBox, context: float, width: int, height: int
) -> NDArray[np.float32]:
    """Returns the box between the region's and the whole image's, float32 (4,).

    Single precision, in this order of operations: the edges are truncated later, and
    half of them would be off by one otherwise.
    """
    own = region.astype(np.float32)
    whole = np.array([0, 0, width, height], dtype=np.float32)
    return own + (whole - own) * np.float32(context)


def whole_pixels(
    box: NDArray[np.float32], width: int, height: int
) -> NDArray[np.int64]:
    """Returns a box cut to the frame and truncated to pixels, int64 (4,)."""
    limits = np.array([width, height, width, height])
    cut = np.clip(box, 0, limits).astype(np.int64)
    first = np.minimum(cut[:2], limits[:2] - 1)
    return np.concatenate([first, np.maximum(cut[2:], first + 1)])


def roi_in_view(
    region: NDArray[np.int64], crop: NDArray[np.int64], size: int | None
) -> NDArray[np.float32]:
    """Returns the region's box inside a view, float32 (4,), in whole pixels.

    Args:
        region: Pixel edges of the region's own view, int64 (4,).
        crop: Pixel edges of the view, int64 (4,).
        size: Side of the square image in pixels; None if it has the crop's size.
    """
    inside = region - np.tile(crop[:2], 2)
    if size is None:
        return inside.astype(np.float32)
    # Truncating the product in single precision is why a view's own box ends at 223
    # for some widths; the checkpoints were trained with it.
    scale = np.tile((size / (crop[2:] - crop[:2])).astype(np.float32), 2)
    return np.trunc(inside.astype(np.float32) * scale)


def to_gray(frame: Frame) -> NDArray[np.uint8]:
    """Returns the gray values that hashes are computed from, uint8 (H, W)."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def perceptual_hash(
    gray: NDArray[np.uint8], box: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Returns a perceptual hash: which low frequencies lie above their mean.

    Args:
        gray: Gray image, uint8 (H, W).
        box: Box of the crop in pixels, float32 (4,).

    Returns:
        bool (64,), row by row, the constant term first.
    """
    height, width = gray.shape
    x1, y1, x2, y2 = whole_pixels(box, width, height)
    crop = gray[y1:y2, x1:x2].astype(np.float32)
    small = cv2.resize(crop, (HASH_SIZE, HASH_SIZE))
    lowest = cv2.dct(small)[:HASH_SIDE, :HASH_SIDE].reshape(-1)
    return lowest > lowest.mean()


def hash_distances(gray: NDArray[np.uint8], region: RegionBox) -> NDArray[np.int64]:
    """Returns the distances of the region's hash to the candidates', int64 (10,).

    Args:
        gray: Gray image, uint8 (H, W).
        region: Box of the region in pixels.
    """
    height, width = gray.shape
    own, *others = (
        perceptual_hash(gray, context_box(region, t, width, height))
        for t in (0.0, *CANDIDATES)
    )
    return np.array([np.count_nonzero(own != other) for other in others])


def pick_contexts(distances: NDArray[np.int64], count: int) -> tuple[float, ...]:
    """Returns context 0 and the candidates with the most new content for their size.

    A candidate's worth is its distance divided by its context. One that was picked is
    worth nothing from then on, so it comes twice only where all are worth nothing.

    Args:
        distances: Distances of the candidates' hashes to the region's, (10,).
        count: Number of contexts, context 0 included.
    """
    worth = distances / np.array(CANDIDATES)
    chosen = [0.0]
    while len(chosen) < count:
        best = int(worth.argmax())
        chosen.append(CANDIDATES[best])
        worth[best] = 0
    return tuple(chosen)


def image_contexts(
    gray: NDArray[np.uint8], region: RegionBox, count: int
) -> tuple[float, ...]:
    """Returns the contexts of the image prior, by what they add to the region.

    Args:
        gray: Gray image, uint8 (H, W), see :func:`to_gray`.
        region: Box of the region in pixels.
        count: Number of contexts, context 0 included.
    """
    if count == 1:
        return (0.0,)
    return pick_contexts(hash_distances(gray, region), count)


def task_contexts(task: str, count: int) -> tuple[float, ...]:
    """Returns the contexts of the task prior, the best of the paper.

    Args:
        task: Name of the task, one of :data:`TASK_CONTEXTS`.
        count: Number of contexts, context 0 included.

    Raises:
        PromptError: When there is no prior for it.
    """
    if task not in TASK_CONTEXTS or count - 1 > len(TASK_CONTEXTS[task]):
        raise PromptError(
            f"no {count} contexts are known for {task!r}; choose 'image', a task out "
            f"of {', '.join(TASK_CONTEXTS)}, or give the contexts"
        )
    return (0.0, *TASK_CONTEXTS[task][: count - 1])


def given_contexts(contexts: Sequence[float]) -> tuple[float, ...]:
    """Returns the caller's contexts, checked.

    Raises:
        PromptError: When they are none.
    """
    chosen = tuple(float(t) for t in contexts)
    if not chosen or chosen[0] != 0 or not all(0 <= t <= 1 for t in chosen):
        raise PromptError(
            f"contexts {list(contexts)} are no contexts; give numbers in [0, 1], "
            "the first one 0"
        )
    return chosen


def _cut(frame: Frame, crop: NDArray[np.int64], size: int | None) -> Frame:
    x1, y1, x2, y2 = crop
    cut = frame[y1:y2, x1:x2]
    if size is None:
        return np.ascontiguousarray(cut)
    picture = Image.fromarray(np.ascontiguousarray(cut))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
