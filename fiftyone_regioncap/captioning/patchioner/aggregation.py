"""Conversion of regions to weights over the patches of a frame.

Every region (a patch, a box, several boxes, a trace, a mask, a polygon, keypoints, the
whole image) becomes one weight per patch, so that the embeddings of all regions of a
frame are one matrix product with its patch features (Patch-ioner, arXiv 2510.02898,
section 3). Weights are float32 (rows, columns), row-major like the patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Box, Mask, box_of_mask, polygons_to_mask

Weights: TypeAlias = NDArray[np.float32]

Compat: TypeAlias = Literal["fixed", "reference"]
"""``"reference"`` repeats the published code to the bit, ``"fixed"`` without its bugs.

What differs is listed in ``docs/patchioner.md``.
"""

UNIFORM_FROM = 100.0
"""From this variance on, a Gaussian over the whole image is the plain mean."""


@dataclass(frozen=True)
class Weighting:
    """Weights the patches of a region against each other.

    Attributes:
        kind: ``mean`` for equal weights, ``gaussian`` for more weight towards the
            middle of the region, or ``attention`` for the attention of the backbone's
            CLS token.
        variance: Variance of the Gaussian, where -1 and 1 are the region's edges; 0
            takes the middle patch alone.
    """

    kind: Literal["mean", "gaussian", "attention"] = "mean"
    variance: float = 1.0


MEAN = Weighting()


@dataclass(frozen=True)
class Grid:
    """Describes how the patches of a frame lie on its pixels.

    Attributes:
        rows: Number of rows of patches.
        columns: Number of columns of patches.
        patch: Side of a patch in pixels of the network's input.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        crop: Whether the network sees the central square of the frame (shorter side
            resized, then cut) instead of the whole frame squashed to a square.
        input_side: Side of the network's square input in pixels, if that is no multiple
            of the patch: the rest at the right and bottom is under no patch.
    """

    rows: int
    columns: int
    patch: int
    height: int
    width: int
    crop: bool = False
    input_side: int | None = None

    @property
    def side(self) -> int:
        """Returns the side of the network's square input in pixels."""
        return self.input_side or self.rows * self.patch


@dataclass(frozen=True)
class Patch:
    """One patch.

    Attributes:
        row: Row from the top, from 0.
        column: Column from the left, from 0.
    """

    row: int
    column: int


@dataclass(frozen=True)
class BoxSet:
    """One box or several, described together.

    Attributes:
        boxes: Boxes as pixel edges (x1, y1, x2, y2); each has the same weight, whatever
            its area.
    """

    boxes: Sequence[Box]


@dataclass(frozen=True)
class Points:
    """A trace of the mouse, or keypoints: patches count by how many points they hold.

    Attributes:
        points: Points as x, y in pixels, float (N, 2); those outside the frame are
            dropped.
    """

    points: NDArray[np.floating]


@dataclass(frozen=True)
class MaskRegion:
    """A mask.

    Attributes:
        mask: Object mask, bool (H, W) at the frame's size.
        rule: ``coverage`` weights a patch by the fraction of it that the mask covers;
            ``index`` gives every patch that the mask touches the same weight, as the
            reference's index sets do.
    """

    mask: Mask
    rule: Literal["coverage", "index"] = "coverage"


@dataclass(frozen=True)
class Polygon:
    """One polygon or several (even-odd rule), as a mask.

    Attributes:
        rings: Each float (N, 2) of x, y in pixels, N >= 3.
    """

    rings: Sequence[NDArray[np.floating]]


@dataclass(frozen=True)
class Whole:
    """The whole image."""


Region: TypeAlias = Patch | BoxSet | Points | MaskRegion | Polygon | Whole


@dataclass
class AttentionMap:
    """The backbone's attention over patches, as boxes read and (in compat) rescale it.

    The reference rescales the part under a box in place, so that later boxes that
    overlap it see other weights. ``fixed`` leaves the map alone.

    Attributes:
        weights: Attention weights, float32 (rows, columns), with a sum of 1 at the
            start.
        compat: Whose behavior to follow, see :data:`Compat`.
    """

    weights: Weights
    compat: Compat = "fixed"
    _own: bool = field(default=False, init=False, repr=False)

    def rescaled(self, rows: slice, columns: slice) -> Weights:
        """Returns the map's part under a box, scaled to sum 1."""
        part = self.weights[rows, columns]
        part = part / part.sum()
        if self.compat == "reference":
            if not self._own:
                self.weights, self._own = self.weights.copy(), True
            self.weights[rows, columns] = part
        return part


def gaussian(rows: int, columns: int, variance: float) -> Weights:
    """Returns a Gaussian over a rectangle of patches, with a sum of 1.

    Args:
        rows: Number of rows of the rectangle.
        columns: Number of columns of the rectangle.
        variance: V in exp(-(x^2 + y^2) / v), x and y from -1 to 1 edge to edge; 0 is
            all weight on the middle patch (the upper left one of the middle ones).

    Returns:
        float32 (rows, columns).
    """
    if variance == 0:
        bump = np.zeros((rows, columns), dtype=np.float32)
        bump[(rows - 1) // 2, (columns - 1) // 2] = 1
        return bump
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None]
    distance = x**2 + y**2
    # Taking the least away changes nothing once scaled, and keeps it from underflowing.
    bump = np.exp((distance.min() - distance) / variance)
    return (bump / bump.sum()).astype(np.float32)


def whole_weights(
    grid: Grid, weighting: Weighting, attention: AttentionMap | None = None
) -> Weights:
    """Returns the weights of the whole image, with a sum of 1."""
    if weighting.kind == "attention":
        return _attention(attention).weights
    if weighting.kind == "mean" or weighting.variance >= UNIFORM_FROM:
        count = grid.rows * grid.columns
        return np.full((grid.rows, grid.columns), 1 / count, dtype=np.float32)
    return gaussian(grid.rows, grid.columns, weighting.variance)


def to_input(box: Sequence[float], grid: Grid) -> tuple[float, float, float, float]:
    """Converts a box from pixels of the frame to pixels of the network's input.

    Args:
        box: Box as (x, y, width, height) in pixels of the frame.
        grid: Patch grid of the frame.

    Returns:
        (x, y, width, height) in pixels of the network's input. With ``crop``, what is
        cut off moves the box to the border, as the reference does.
    """
    x, y, width, height = box
    side = grid.side
    if not grid.crop:
        across, down = side / grid.width, side / grid.height
        return x * across, y * down, width * across, height * down
    scale = side / min(grid.width, grid.height)
    left = max(0, (int(grid.width * scale) - side) // 2)
    top = max(0, (int(grid.height * scale) - side) // 2)
    x = min(max(x * scale - left, 0), side - 1)
    y = min(max(y * scale - top, 0), side - 1)
    width = min(max(width * scale, 0), side - x)
    height = min(max(height * scale, 0), side - y)
    return x, y, width, height


def box_patches(box: Sequence[float], grid: Grid) -> tuple[slice, slice]:
    """Returns the patches of a box by the reference's index rule.

    The first patch holds the box's corner, and the last is as many patches on as fit in
    its width and height, inclusive; what goes past the last patch is cut off.

    Args:
        box: Box as (x, y, width, height) in pixels of the network's input.
        grid: Patch grid of the frame.

    Returns:
        Slices of rows and columns.

    Raises:
        PromptError: If no patch is left.
    """
    x, y, width, height = box
    column, row = int(x // grid.patch), int(y // grid.patch)
    right = column + int(width // grid.patch)
    bottom = row + int(height // grid.patch)
    rows = slice(max(row, 0), min(bottom + 1, grid.rows))
    columns = slice(max(column, 0), min(right + 1, grid.columns))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise PromptError(
            f"the box x, y, width, height = {tuple(box)} lies outside the network's "
            f"{grid.side}x{grid.side} input; give one inside the frame"
        )
    return rows, columns


def box_weights(
    box: Sequence[float],
    grid: Grid,
    weighting: Weighting = MEAN,
    attention: AttentionMap | None = None,
) -> Weights:
    """Returns the weights of one box, with a sum of 1.

    Args:
        box: Box as (x, y, width, height) in pixels of the network's input.
        grid: Patch grid of the frame.
        weighting: Weighting of the box's patches.
        attention: Attention of the frame, for attention weighting.

    Raises:
        PromptError: If the box lies outside.
    """
    rows, columns = box_patches(box, grid)
    shape = rows.stop - rows.start, columns.stop - columns.start
    weights = np.zeros((grid.rows, grid.columns), dtype=np.float32)
    if weighting.kind == "attention":
        weights[rows, columns] = _attention(attention).rescaled(rows, columns)
    elif weighting.kind == "gaussian":
        weights[rows, columns] = gaussian(*shape, weighting.variance)
    else:
        weights[rows, columns] = 1 / (shape[0] * shape[1])
    return weights


def box_set_weights(
    boxes: Sequence[Sequence[float]],
    grid: Grid,
    weighting: Weighting = MEAN,
    attention: AttentionMap | None = None,
) -> Weights:
    """Returns the weights of several boxes together: the mean of theirs, with sum 1.

    Args:
        boxes: Boxes as (x, y, width, height) in pixels of the network's input; padding
            (-1, -1, -1, -1) is skipped.
        grid: Patch grid of the frame.
        weighting: Weighting of each box's patches.
        attention: Attention of the frame, for attention weighting.

    Raises:
        PromptError: If there is no box, or one lies outside.
    """
    real = [box for box in boxes if sum(int(edge) for edge in box) >= 0]
    if not real:
        raise PromptError("a box set needs at least one box; got none")
    maps = [box_weights(box, grid, weighting, attention) for box in real]
    return np.mean(maps, axis=0, dtype=np.float32)


def point_counts(points: NDArray[np.floating], grid: Grid) -> Weights:
    """Counts the points in each patch.

    Args:
        points: Points as x, y in fractions of the frame from the top left, float (N,
            2); those outside [0, 1] are dropped.
        grid: Patch grid of the frame.

    Returns:
        float32 (rows, columns), whole numbers.
    """
    x, y = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    # Divided by the cell's width, not multiplied by the number of cells: points that
    # lie on a border between cells fall as they do in the reference.
    columns = np.minimum(x[inside] / (1 / grid.columns), grid.columns - 1).astype(int)
    rows = np.minimum(y[inside] / (1 / grid.rows), grid.rows - 1).astype(int)
    counts = np.zeros((grid.rows, grid.columns), dtype=np.float32)
    np.add.at(counts, (rows, columns), 1)
    return counts


def mask_coverage(mask: Mask, grid: Grid) -> Weights:
    """Returns the fraction of each patch that a mask covers.

    Args:
        mask: Object mask, bool (H, W) at the frame's size.
        grid: Patch grid of the frame.

    Returns:
        float32 (rows, columns) in [0, 1].

    Raises:
        PromptError: If the mask is empty or of another size.
    """
    if mask.shape != (grid.height, grid.width):
        raise PromptError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]}, the frame "
            f"{grid.width}x{grid.height}; give a mask of the frame's size"
        )
    box = box_of_mask(mask)
    if box is None:
        raise PromptError("the mask is empty; mark the object on it")
    left, top, right, bottom = (int(edge) for edge in box)
    down = _overlaps(grid, "rows", top, bottom)
    across = _overlaps(grid, "columns", left, right)
    inside = mask[top:bottom, left:right].astype(np.float32)
    return np.clip(down @ inside @ across.T, 0, 1)


def _overlaps(
    grid: Grid, axis: Literal["rows", "columns"], start: int, stop: int
) -> Weights:
    """Returns how much of each patch each pixel covers along one axis.

    Returns:
        float32 (patches, stop - start); rows sum to 1 over all pixels under the patch.
    """
    count, length = (
        (grid.rows, grid.height) if axis == "rows" else (grid.columns, grid.width)
    )
    seen = min(grid.height, grid.width) if grid.crop else length
    origin = (length - seen) / 2
    step = seen * grid.patch / grid.side
    edges = origin + np.arange(count + 1) * step
    pixels = np.arange(start, stop)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    return (np.clip(high - low, 0, None) / step).astype(np.float32)


def _attention(attention: AttentionMap | None) -> AttentionMap:
    if attention is None:
        raise PromptError(
            "this backbone gives no attention map; weight by 'mean' or 'gaussian'"
        )
    return attention


def region_weights(
    region: Region,
    grid: Grid,
    weighting: Weighting = MEAN,
    attention: AttentionMap | None = None,
) -> Weights:
    """Returns the weights of any region, with a sum of 1.

    Args:
        region: Region in pixels of the frame.
        grid: Patch grid of the frame.
        weighting: Weighting of the region's patches. A Gaussian over a mask or points
            spans the rectangle of patches around them.
        attention: Attention of the frame, for attention weighting.

    Returns:
        float32 (rows, columns).

    Raises:
        PromptError: If nothing of the region is in the frame, a box has no area, a
            mask is empty or of another size, or attention is asked of a backbone
            without it.
    """
    if isinstance(region, Whole):
        return whole_weights(grid, weighting, attention)
    if isinstance(region, Patch):
        return _patch_weights(region, grid)
    if isinstance(region, BoxSet):
        boxes = [_visible_box(box, grid) for box in region.boxes]
        return box_set_weights(boxes, grid, weighting, attention)
    if isinstance(region, Points):
        size = np.array([grid.width, grid.height], dtype=np.float64)
        counts = point_counts(_seen_points(region.points / size, grid), grid)
        if not counts.any():
            raise PromptError(
                "no point of the trace lies in the frame; points are x, y in pixels"
            )
        return _modulated(counts, grid, weighting, attention)
    if isinstance(region, Polygon):
        mask = polygons_to_mask(region.rings, grid.height, grid.width)
        region = MaskRegion(mask)
    coverage = mask_coverage(region.mask, grid)
    if not coverage.any():
        raise PromptError(
            "the mask lies in the part of the frame that no patch sees, such as what "
            "cropping cuts off; use the squashed input"
        )
    if region.rule == "index":
        coverage = (coverage > 0).astype(np.float32)
    return _modulated(coverage, grid, weighting, attention)


def _patch_weights(region: Patch, grid: Grid) -> Weights:
    if not (0 <= region.row < grid.rows and 0 <= region.column < grid.columns):
        raise PromptError(
            f"there is no patch {region.row}, {region.column}; the frame has "
            f"{grid.rows} rows and {grid.columns} columns of patches, from 0"
        )
    weights = np.zeros((grid.rows, grid.columns), dtype=np.float32)
    weights[region.row, region.column] = 1
    return weights


def _visible_box(box: Box, grid: Grid) -> tuple[float, float, float, float]:
    """Returns the part of a box inside its frame, as the network's input has it."""
    x1, y1, x2, y2 = box
    if not np.isfinite(box).all() or x2 <= x1 or y2 <= y1:
        raise PromptError(f"the box {box} has no area; give x1 < x2 and y1 < y2")
    x1, y1 = max(x1, 0), max(y1, 0)
    x2, y2 = min(x2, grid.width), min(y2, grid.height)
    if x2 <= x1 or y2 <= y1:
        raise PromptError(
            f"the box {box} lies outside the {grid.width}x{grid.height} frame; "
            "boxes are x1, y1, x2, y2 in pixels"
        )
    return to_input((x1, y1, x2 - x1, y2 - y1), grid)


def _seen_points(points: NDArray[np.floating], grid: Grid) -> NDArray[np.floating]:
    """Returns points as fractions of what the network sees instead of the frame."""
    if not grid.crop:
        return points
    size = np.array([grid.width, grid.height]) / min(grid.width, grid.height)
    return (points - 0.5) * size + 0.5


def _modulated(
    weights: Weights,
    grid: Grid,
    weighting: Weighting,
    attention: AttentionMap | None,
) -> Weights:
    """Returns weights times the weighting, with a sum of 1."""
    if weighting.kind == "attention":
        weights = weights * _attention(attention).weights
    elif weighting.kind == "gaussian":
        rows = np.flatnonzero(weights.any(axis=1))
        columns = np.flatnonzero(weights.any(axis=0))
        down, across = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        bump = np.zeros_like(weights)
        bump[down, across] = gaussian(
            down.stop - down.start, across.stop - across.start, weighting.variance
        )
        if (weights * bump).any():
            weights = weights * bump
    return (weights / weights.sum()).astype(np.float32)
