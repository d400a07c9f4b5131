"""The colors of an embedding's cells, which the embedding itself says little of.

MobileSAM learned where things end, not which is which: a red car that drives in front
of a silver one matches it well. Colors tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.propagation.mobilesam.segmenter import MASK_STRIDE, Grid
from fiftyone_regioncap.propagation.mobilesam.tinyvit import STRIDE

# Centers of the bins along L*, a* and b* of CIELAB. A color counts for the two nearest
# along each, so that a slight change of light changes a histogram slightly.
_LIGHTNESS: Final = (0.0, 25.0, 50.0, 75.0, 100.0)
_CHROMA: Final = (-30.0, 0.0, 30.0)


def cell_colors(frame: Frame, grid: Grid, device: torch.device) -> Tensor:
    """How the colors of each cell are distributed.

    Args:
        frame: uint8 (H, W, 3) RGB.
        grid: of the frame.
        device: where the result shall be.

    Returns:
        float (45, rows, columns), the square roots of each cell's histogram: of unit
        length, and the dot product of two cells is Bhattacharyya's coefficient.
    """
    rows, columns = grid.cells
    per_cell = STRIDE // MASK_STRIDE
    height, width = (max(1, round(n / MASK_STRIDE)) for n in grid.content)
    small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    small = cv2.copyMakeBorder(
        small,
        0,
        max(0, rows * per_cell - height),
        0,
        max(0, columns * per_cell - width),
        cv2.BORDER_REPLICATE,
    )[: rows * per_cell, : columns * per_cell]
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lightness, a, b = torch.from_numpy(lab).to(device).unbind(dim=2)
    bins = torch.einsum(
        "hwi,hwj,hwk->ijkhw",
        _memberships(lightness, _LIGHTNESS),
        _memberships(a, _CHROMA),
        _memberships(b, _CHROMA),
    ).flatten(0, 2)
    return F.avg_pool2d(bins, per_cell).clamp(min=0).sqrt()


def color_agreement(
    colors: Tensor, share: Tensor, remembered: Sequence[tuple[Tensor, Tensor]]
) -> float:
    """How alike an object's colors are to those that it had.

    Args:
        colors: float (45, rows, columns) from :func:`cell_colors`.
        share: float (rows, columns), how much of each cell is the object's.
        remembered: the same two of frames on which the object is known.

    Returns:
        in [0, 1]: Bhattacharyya's coefficient with the most alike of those; 0 for an
        object without a cell.
    """
    now = _histogram(colors, share)
    return max(
        float((now * _histogram(then, known)).sqrt().sum())
        for then, known in remembered
    )


def _memberships(values: Tensor, centers: Sequence[float]) -> Tensor:
    """Shares (..., bins) of each value in bins that overlap, of sum 1."""
    at = torch.tensor(centers, device=values.device)
    inside = values.clamp(centers[0], centers[-1])[..., None]
    return (1 - (inside - at).abs() / (centers[1] - centers[0])).clamp(min=0)


def _histogram(colors: Tensor, share: Tensor) -> Tensor:
    return F.normalize((colors.square() * share).sum(dim=(1, 2)), p=1, dim=0)
