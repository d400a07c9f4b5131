"""Where, and how finely, objects are searched in the next frame.

Of a frame, only the part that can show them is encoded. When they fill little of it,
that part is encoded finer at no greater cost. Parts are whole windows of the attention
in the encoder's last stage, so that a cell is encoded nearly as in the whole frame, and
alike from frame to frame: with windows that move along with the object, J of a
rollerblader was .755 instead of .855. Whole windows of its third stage, twice as large,
gave the same .855, and would be more to encode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fiftyone_regioncap.core.types import Box, Prompt, box_of_mask
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid, Part
from fiftyone_regioncap.propagation.mobilesam.settings import Settings
from fiftyone_regioncap.propagation.mobilesam.tinyvit import STRIDE

_WINDOW: Final = 7
"""Cells along each axis of the windows in the encoder's last stage."""

_COARSER: Final = 128
"""Pixels by which a part is encoded coarser where it would have too many cells."""


def side_for(
    prompts: Sequence[Prompt], height: int, width: int, settings: Settings
) -> int:
    """Returns at which size a video is encoded, by how much of it objects fill.

    An object is as large as its latest prompt says, so that a corrected one is followed
    as finely as if the correction had been its only prompt.

    Args:
        prompts: Prompts in the order of the run. What a point shows is not known before
            it is decoded, so that an object with only points is taken to fill the
            frame.
        height: Height of the frames in pixels.
        width: Width of the frames in pixels.
        settings: Settings of tracking.

    Returns:
        Longest side of the encoder's input in pixels, a multiple of 16.
    """
    boxes: dict[int, list[tuple[int, Box]]] = {p.object_id: [] for p in prompts}
    for prompt in prompts:
        box = prompt.box if prompt.mask is None else box_of_mask(prompt.mask)
        if box is not None:
            boxes[prompt.object_id].append((prompt.frame, box))
    if not all(boxes.values()):
        return settings.side
    latest = [
        box for given in boxes.values() for frame, box in given if frame == given[-1][0]
    ]
    left, top, right, bottom = zip(*latest, strict=True)
    most = settings.budget * math.prod(Grid(height, width, settings.side).cells)
    finest = settings.finest // STRIDE * STRIDE
    for side in range(finest, settings.side, -_COARSER):
        grid = Grid(height, width, side)
        reach = round(settings.reach * side / STRIDE)
        counts = (
            len(
                _windows(
                    math.floor(low * grid.scale / STRIDE) - reach,
                    math.ceil(high * grid.scale / STRIDE) + reach,
                    cells,
                )
            )
            for low, high, cells in zip(
                (min(top), min(left)),
                (max(bottom), max(right)),
                grid.cells,
                strict=True,
            )
        )
        if math.prod(counts) <= most:
            return side
    return settings.side


def searched(labels: Iterable[Tensor | None], grid: Grid, reach: int) -> Part:
    """Returns the part of a frame in which all objects are searched.

    Args:
        labels: Labels of each object on the last frame, (cells, 16); None when it was
            lost, and is searched everywhere.
        grid: Cell grid of the frame.
        reach: Number of cells around a label in which its object is searched.
    """
    rows, columns = grid.cells
    on = torch.zeros(rows, columns, dtype=torch.bool)
    for label in labels:
        if label is None:
            return grid.whole
        on |= (label > 0).any(dim=1).view(rows, columns).cpu()
    if not on.any():
        return grid.whole
    return Part(
        *(
            _windows(int(at.min()) - reach, int(at.max()) + 1 + reach, cells)
            for at, cells in (
                (on.any(dim=1).nonzero(), rows),
                (on.any(dim=0).nonzero(), columns),
            )
        )
    )


def _windows(low: int, high: int, cells: int) -> range:
    """Returns the cells of an axis in all windows that an interval touches."""
    low, high = max(low, 0), min(high, cells)
    return range(low // _WINDOW * _WINDOW, min(-(-high // _WINDOW) * _WINDOW, cells))


def around(label: Tensor | None, grid: Grid, reach: int) -> Tensor:
    """Returns indices of cells within reach of a label; of all without a label.

    Args:
        label: Values of each cell, (cells, n); above 0 somewhere on the object.
        grid: Cell grid of the frame.
        reach: Number of cells.
    """
    rows, columns = grid.cells
    if label is None:
        return torch.arange(rows * columns)
    on = (label > 0).any(dim=1).view(1, rows, columns).float()
    size = 2 * reach + 1
    near = F.max_pool2d(on, (1, size), 1, (0, reach))
    near = F.max_pool2d(near, (size, 1), 1, (reach, 0))
    return near.flatten().nonzero()[:, 0]


def center(label: Tensor, grid: Grid) -> tuple[float, float]:
    """Returns the center (y, x) of a label (cells, n) in cells."""
    rows, columns = grid.cells
    weights = label.float().sum(dim=1).view(rows, columns)
    total = weights.sum().clamp(min=1e-6)
    device = weights.device
    y = (weights.sum(dim=1) * torch.arange(rows, device=device)).sum() / total
    x = (weights.sum(dim=0) * torch.arange(columns, device=device)).sum() / total
    return float(y), float(x)
