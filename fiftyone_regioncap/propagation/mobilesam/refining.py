"""Refinement of a carried soft mask to the outlines in the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.types import Box, Mask, box_of_mask
from fiftyone_regioncap.propagation.competition import drop_fragments
from fiftyone_regioncap.propagation.mobilesam.segmenter import (
    CERTAIN,
    MASK_STRIDE,
    Encoding,
    Grid,
    MobileSam,
)
from fiftyone_regioncap.propagation.mobilesam.settings import Settings
from fiftyone_regioncap.propagation.mobilesam.tinyvit import STRIDE

_LEAST_CELLS = 12
"""Cells along each axis that the decoder sees at least, where the frame has them."""


@dataclass(frozen=True)
class Refined:
    """Represents a mask after refinement.

    Attributes:
        logits: Mask logits, float (rows * 4, columns * 4), above 0 on the object.
        mask: The carried mask without fragments, bool (rows * 4, columns * 4).
        agreement: IoU of the decoder's mask and the carried one, in [0, 1].
    """

    logits: NDArray[np.float32]
    mask: Mask
    agreement: float


def refine(
    model: MobileSam, encoding: Encoding, grid: Grid, soft: Tensor, settings: Settings
) -> Refined | None:
    """Takes, of the decoder's four masks, the one that is most like the carried mask.

    The decoder's first mask alone collapses to a part (a rider, the trousers), which
    then becomes memory. The four are compared at low resolution and softly, so that
    what the carried mask is unsure of counts little.

    Args:
        model: MobileSAM model.
        encoding: Image encoding of the frame.
        grid: Cell grid of the frame.
        soft: Soft mask carried from other frames, float (rows * 4, columns * 4) in [0,
            1].
        settings: Settings of tracking.

    Returns:
        The mask, or None when nothing was carried.
    """
    mask = drop_fragments((soft > 0.5).cpu().numpy(), settings.fragment)
    box = box_of_mask(mask)
    if box is None:
        return None
    kept = torch.from_numpy(mask).to(soft.device)
    soft = torch.where(kept | (soft <= 0.5), soft, 0.0)
    carried = CERTAIN * (soft - 0.5)
    rows, columns = _seen(box, grid, settings.margin)
    part = (
        slice(rows.start * STRIDE // MASK_STRIDE, rows.stop * STRIDE // MASK_STRIDE),
        slice(
            columns.start * STRIDE // MASK_STRIDE, columns.stop * STRIDE // MASK_STRIDE
        ),
    )
    candidates = model.candidates(
        encoding.embedding,
        grid,
        box=np.array(box) * (MASK_STRIDE / grid.scale),
        mask_logits=torch.where(kept, CERTAIN, -CERTAIN),
        rows=rows,
        columns=columns,
    )
    shares = candidates.sigmoid()
    overlap = torch.minimum(shares, soft[part]).sum(dim=(1, 2))
    best = int((overlap / torch.maximum(shares, soft[part]).sum(dim=(1, 2))).argmax())
    decoded = candidates[best] > 0
    both, either = decoded & kept[part], decoded | kept[part]
    agreement = float(both.sum() / either.sum())
    logits = carried
    if agreement >= settings.agreement:
        logits = torch.full_like(carried, -CERTAIN)
        logits[part] = candidates[best].lerp(carried[part], settings.blend)
    return Refined(logits.cpu().numpy(), mask, agreement)


def _seen(box: Box, grid: Grid, margin: float) -> tuple[range, range]:
    """Returns the rows and columns of cells around a box in low-resolution pixels."""
    x1, y1, x2, y2 = (edge * MASK_STRIDE / STRIDE for edge in box)
    around = max(margin * max(x2 - x1, y2 - y1), 3)
    seen = []
    for low, high, cells in ((y1, y2, grid.cells[0]), (x1, x2, grid.cells[1])):
        more = max(around, (_LEAST_CELLS - (high - low)) / 2)
        start, stop = math.floor(low - more), math.ceil(high + more)
        seen.append(range(max(start, 0), min(stop, cells)))
    return seen[0], seen[1]
