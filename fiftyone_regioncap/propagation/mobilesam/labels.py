"""Sub-cell labels: each cell holds 4 x 4 shares of an object.

One share per cell, 17.8 pixels of a frame 854 wide, loses what is thinner than that on
the first frame.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.types import Mask
from fiftyone_regioncap.propagation.mobilesam.segmenter import MASK_STRIDE, Grid
from fiftyone_regioncap.propagation.mobilesam.tinyvit import STRIDE

BLOCK: Final = STRIDE // MASK_STRIDE
"""Labels per cell along each axis."""


def shrink(mask: Mask, grid: Grid) -> NDArray[np.float32]:
    """Returns the share of each pixel of a low-resolution mask that is an object's.

    What is thinner than these pixels would be below one half everywhere; shares are
    raised so that as many pixels are above one half as the object has area.

    Args:
        mask: Object mask, bool (H, W) at the frame's size.
        grid: Cell grid of the frame.

    Returns:
        float (rows * 4, columns * 4) in [0, 1].
    """
    rows, columns = grid.cells
    height, width = (max(1, round(edge / MASK_STRIDE)) for edge in grid.content)
    size, area = (width, height), float(mask.sum())
    scaled = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    shares = scaled.astype(np.float32) / 255
    if area and not scaled.any():  # less than a 255th of a pixel
        shares = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    area *= (grid.scale / MASK_STRIDE) ** 2
    if area and (shares > 0.5).sum() < 0.75 * area:
        wanted = min(max(1, round(area)), int((shares > 0).sum()))
        threshold = np.partition(shares.ravel(), -wanted)[-wanted]
        shares = np.minimum(shares / (1.98 * threshold), 1.0)
    padded = np.zeros((rows * BLOCK, columns * BLOCK), dtype=np.float32)
    height, width = min(height, rows * BLOCK), min(width, columns * BLOCK)
    padded[:height, :width] = shares[:height, :width]
    return padded


def enlarge_to_frame(low: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Enlarges one low-resolution mask to the frame in one step.

    Args:
        low: Low-resolution mask, (rows * 4, columns * 4).
        grid: Cell grid of the frame.

    Returns:
        (H, W) at the frame's size.
    """
    scale = grid.scale / MASK_STRIDE
    offset = 0.5 * scale - 0.5
    return cv2.warpAffine(
        low,
        np.array([[scale, 0, offset], [0, scale, offset]]),
        (grid.width, grid.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def to_blocks(low: NDArray[np.float32]) -> Tensor:
    """Converts shares (rows * 4, columns * 4) to uint8 (cells, 16), 255 for 1."""
    rows, columns = low.shape[0] // BLOCK, low.shape[1] // BLOCK
    blocks = low.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3)
    return torch.from_numpy(np.rint(blocks * 255).astype(np.uint8)).reshape(
        rows * columns, BLOCK * BLOCK
    )


def from_blocks(blocks: Tensor, grid: Grid) -> Tensor:
    """Converts blocks (cells, 16) to shares (rows * 4, columns * 4)."""
    rows, columns = grid.cells
    split = blocks.view(rows, columns, BLOCK, BLOCK).transpose(1, 2)
    return split.reshape(rows * BLOCK, columns * BLOCK)
