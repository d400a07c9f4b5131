"""Refinement of carried soft masks to the outlines in the image."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.types import Box, Mask, box_of_mask
from fiftyone_regioncap.propagation.competition import drop_fragments
from fiftyone_regioncap.propagation.mobilesam.labels import BLOCK
from fiftyone_regioncap.propagation.mobilesam.segmenter import (
    CERTAIN,
    MASK_STRIDE,
    Encoding,
    Grid,
    MobileSam,
    Part,
)
from fiftyone_regioncap.propagation.mobilesam.settings import Settings

_LEAST_CELLS: Final = 12
"""Cells along each axis that the decoder sees at least, where there are as many."""

_STEP: Final = 4
"""Cells along each axis are a multiple, so that objects are often decoded together."""


@dataclass(frozen=True)
class Refined:
    """Represents a mask after refinement.

    Attributes:
        logits: Mask logits, float (rows * 4, columns * 4), above 0 on the object.
        mask: The carried mask without fragments, bool (rows * 4, columns * 4).
        agreement: IoU of the decoder's mask and the carried one, in [0, 1].
        certainty: How far the shares of the carried mask's pixels are from one half, on
            the mean, where 1 means that all matches say the same; in [0, 1].
    """

    logits: NDArray[np.float32]
    mask: Mask
    agreement: float
    certainty: float


@dataclass(frozen=True)
class _Carried:
    """Represents what is carried of an object, ready for the decoder.

    Attributes:
        soft: Soft mask without fragments, float (rows * 4, columns * 4).
        mask: The mask, bool (rows * 4, columns * 4).
        box: Box of the mask in low-resolution pixels.
        part: Cells that the decoder sees.
    """

    soft: Tensor
    mask: Tensor
    box: Box
    part: Part


def refine(
    model: MobileSam,
    encoding: Encoding,
    grid: Grid,
    soft: Tensor,
    targets: Tensor,
    settings: Settings,
) -> list[Refined | None]:
    """Takes, of the decoder's four masks, the one that is most like the carried mask.

    The decoder's first mask alone collapses to a part (a rider, the trousers), which
    then becomes memory. The four are compared at low resolution and softly, so that
    what the carried mask is unsure of counts little.

    Args:
        model: MobileSAM model.
        encoding: Image encoding of the frame.
        grid: Cell grid of the frame.
        soft: Soft masks of N objects carried from other frames, float (N, rows * 4,
            columns * 4) in [0, 1].
        targets: Mean embedding of each object where it was prompted, float (N, 256).
        settings: Settings of tracking.

    Returns:
        For each object the mask, or None when nothing was carried.
    """
    carried = [_prepare(one, encoding.part, settings) for one in soft]
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, one in enumerate(carried):
        if one is not None:
            alike[one.part.shape].append(number)
    refined: list[Refined | None] = [None] * len(carried)
    for numbers in alike.values():
        group = [one for n in numbers if (one := carried[n]) is not None]
        decoded = model.candidates(
            encoding,
            grid,
            boxes=np.array([one.box for one in group]) * (MASK_STRIDE / grid.scale),
            mask_logits=torch.stack(
                [
                    torch.where(one.mask[one.part.slices(BLOCK)], CERTAIN, -CERTAIN)
                    for one in group
                ]
            ),
            parts=[one.part for one in group],
            targets=targets[numbers] * settings.target,
        )
        for number, one, candidates in zip(numbers, group, decoded, strict=True):
            refined[number] = _choose(one, candidates, settings)
    return refined


def _prepare(soft: Tensor, encoded: Part, settings: Settings) -> _Carried | None:
    """Drops fragments of a carried soft mask; None when nothing is left."""
    mask = drop_fragments((soft > 0.5).cpu().numpy(), settings.fragment)
    box = box_of_mask(mask)
    if box is None:
        return None
    kept = torch.from_numpy(mask).to(soft.device)
    soft = torch.where(kept | (soft <= 0.5), soft, 0.0)
    return _Carried(soft, kept, box, _seen(box, encoded, settings.margin))


def _choose(one: _Carried, candidates: Tensor, settings: Settings) -> Refined:
    """Takes the most alike of the decoder's masks, or the carried one if none is."""
    part = one.part.slices(BLOCK)
    soft, kept = one.soft[part], one.mask[part]
    shares = candidates.sigmoid()
    overlap = torch.minimum(shares, soft).sum(dim=(1, 2))
    best = int((overlap / torch.maximum(shares, soft).sum(dim=(1, 2))).argmax())
    decoded = candidates[best] > 0
    agreement = float((decoded & kept).sum() / (decoded | kept).sum())
    logits = CERTAIN * (one.soft - 0.5)
    if agreement >= settings.agreement:
        mixed = candidates[best].lerp(logits[part], settings.blend)
        logits = torch.full_like(logits, -CERTAIN)
        logits[part] = mixed
    certainty = 2 * float(one.soft[one.mask].mean()) - 1
    return Refined(logits.cpu().numpy(), one.mask.cpu().numpy(), agreement, certainty)


def _seen(box: Box, encoded: Part, margin: float) -> Part:
    """Returns the encoded cells around a box in low-resolution pixels."""
    x1, y1, x2, y2 = (edge / BLOCK for edge in box)
    around = max(margin * max(x2 - x1, y2 - y1), 3)
    return Part(
        _widened(y1 - around, y2 + around, encoded.rows),
        _widened(x1 - around, x2 + around, encoded.columns),
    )


def _widened(low: float, high: float, cells: range) -> range:
    """Returns whole cells around an interval, in few different numbers."""
    start, stop = math.floor(low), math.ceil(high)
    count = max(-(-(stop - start) // _STEP) * _STEP, _LEAST_CELLS)
    count = min(count, len(cells))
    start -= (count - (stop - start)) // 2
    start = min(max(start, cells.start), cells.stop - count)
    return range(start, start + count)
