"""Where, and how finely, objects are searched in the next frame.

Of a frame, the part that can show them may be encoded alone. When they fill little of
it, that part can be encoded finer at no greater cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fiftyone_regioncap.core.types import Prompt, box_of_mask
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid, Part
from fiftyone_regioncap.propagation.mobilesam.settings import Settings
from fiftyone_regioncap.propagation.mobilesam.tinyvit import STRIDE

_WINDOW: Final = 7
"""Cells along each axis of the windows in the encoder's last stage."""


def side_for(
    prompts: Sequence[Prompt], height: int, width: int, settings: Settings
) -> int:
    """Returns at which size a video is encoded, by how much of it objects fill.

    Args:
        prompts: Prompts of the run. What a point shows is not known before it is
            decoded, so that it is taken to fill the frame.
        height: Height of the frames in pixels.
        width: Width of the frames in pixels.
        settings: Settings of tracking.

    Returns:
        Longest side of the encoder's input in pixels, a multiple of 16.
    """
    first = min(prompt.frame for prompt in prompts)
    boxes = [
        prompt.box if prompt.mask is None else box_of_mask(prompt.mask)
        for prompt in prompts
        if prompt.frame == first
    ]
    known = [box for box in boxes if box is not None]
    if len(known) < len(boxes):
        return settings.side
    left, top, right, bottom = zip(*known, strict=True)
    extents = (max(bottom) - min(top), max(right) - min(left))
    most = math.prod(Grid(height, width, settings.side).cells)
    finest = round(settings.side * settings.zoom / STRIDE) * STRIDE
    for side in range(finest, settings.side, -STRIDE):
        grid = Grid(height, width, side)
        reach = round(settings.reach * side / STRIDE)
        counts = (
            _in_windows(math.ceil(extent * grid.scale / STRIDE) + 2 * reach, cells)
            for extent, cells in zip(extents, grid.cells, strict=True)
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
        _whole_windows(on.any(dim=1), reach), _whole_windows(on.any(dim=0), reach)
    )


def _whole_windows(on: Tensor, reach: int) -> range:
    """Returns what is near cells of an axis, in whole windows of the encoder.

    Windows that are cut off are padded, and cost as much as whole ones.
    """
    at = on.nonzero()
    low = max(int(at.min()) - reach, 0)
    high = min(int(at.max()) + 1 + reach, len(on))
    count = _in_windows(high - low, len(on))
    low = min(max(low - (count - (high - low)) // 2, 0), len(on) - count)
    return range(low, low + count)


def _in_windows(count: int, cells: int) -> int:
    """Returns how many cells of an axis whole windows around some of them have."""
    return min(-(-count // _WINDOW) * _WINDOW, cells)


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
