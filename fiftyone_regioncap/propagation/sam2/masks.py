"""Conversion of low-resolution logits to masks of the video's size, on the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fiftyone_regioncap.core.types import Mask

BATCH_PIXELS = 1 << 25
"""Pixels that are resized at once: 128 MiB of float32."""


def masks_of(
    logits: Tensor, height: int, width: int, *, overlap: bool, fill_hole_area: int = 0
) -> list[Mask | None]:
    """Makes masks of logits.

    Args:
        logits: Low-resolution mask logits, float32 (B, h, w); above 0 is object.
        height: Height of the masks in pixels.
        width: Width of the masks in pixels.
        overlap: Whether objects may share pixels; else each pixel goes to the object
            with the highest logit.
        fill_hole_area: Area of the largest hole to fill, in low-resolution pixels.

    Returns:
        B masks, bool (height, width), None where an object has no pixel.
    """
    if fill_hole_area > 0:
        logits = fill_holes(logits, fill_hole_area)
    # Resizing only mixes neighbors, so what has no pixel now gets none.
    alive = torch.nonzero(logits.flatten(1).amax(dim=1) > 0)[:, 0].tolist()
    if overlap or len(alive) < 2:
        found = _each(logits, alive, height, width)
    else:
        found = _one_a_pixel(logits, alive, height, width)
    masks: list[Mask | None] = [None] * len(logits)
    for index, mask in zip(alive, found, strict=True):
        masks[index] = mask if mask.any() else None
    return masks


def _batches(
    logits: Tensor, alive: list[int], height: int, width: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields resized logits (b, H, W) in batches, after the rank of the first one."""
    size = max(BATCH_PIXELS // (height * width), 1)
    for first in range(0, len(alive), size):
        resized = F.interpolate(
            logits[alive[first : first + size]].unsqueeze(1),
            size=(height, width),
            mode="bilinear",
            align_corners=False,
        )
        yield first, resized[:, 0]


def _each(logits: Tensor, alive: list[int], height: int, width: int) -> Iterator[Mask]:
    for _, resized in _batches(logits, alive, height, width):
        yield from _to_host(resized > 0)


def _one_a_pixel(
    logits: Tensor, alive: list[int], height: int, width: int
) -> Iterator[Mask]:
    best = torch.zeros(height, width, device=logits.device)
    owner = torch.full((height, width), -1, dtype=torch.int32, device=logits.device)
    for first, resized in _batches(logits, alive, height, width):
        highest, rank = resized.max(dim=0)
        better = highest > best
        best = torch.where(better, highest, best)
        owner = torch.where(better, (rank + first).int(), owner)
    for index in range(len(alive)):
        yield from _to_host((owner == index).unsqueeze(0))


def _to_host(masks: Tensor) -> Iterator[Mask]:
    """Copies bool (b, H, W) off the device, eight pixels a byte."""
    if masks.device.type == "cpu":
        yield from masks.numpy()
        return
    height, width = masks.shape[1:]
    packed = pack_bits(masks.flatten(1)).cpu().numpy()
    for row in packed:
        bits = np.unpackbits(row, count=height * width)
        yield bits.reshape(height, width).astype(bool)


def pack_bits(bits: Tensor) -> Tensor:
    """Packs bool (b, n) to uint8 (b, ceil(n / 8)), as ``numpy.packbits`` does."""
    padded = F.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8))
    weights = torch.tensor(
        [128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=bits.device
    )
    return (padded.unflatten(1, (-1, 8)) * weights).sum(dim=2, dtype=torch.uint8)


def fill_holes(logits: Tensor, max_area: int) -> Tensor:
    """Fills small holes as SAM 2 does: their logits become slightly positive.

    A hole is a connected part (8 neighbors) of what is not object, of at most
    ``max_area`` pixels. Parts that small are found by as many rounds of spreading the
    highest pixel number, which runs on any device.

    Args:
        logits: Low-resolution mask logits, float32 (B, h, w).
        max_area: Area of the largest hole to fill, in pixels.

    Returns:
        float32 (B, h, w).
    """
    count, height, width = logits.shape
    size = height * width
    outside = logits <= 0
    numbers = torch.arange(1, size + 1, device=logits.device, dtype=torch.float32)
    labels = torch.where(outside, numbers.view(1, height, width), 0.0)
    for _ in range(max_area):
        labels = torch.where(outside, _spread(labels), 0.0)
    # Larger parts may still hold several labels; none of those is a whole part.
    highest = _spread(labels)
    lowest = -_spread(torch.where(outside, -labels, -torch.inf))
    broken = outside & ((highest != labels) | (lowest != labels))
    keys = labels.long().flatten(1)
    ones = outside.flatten(1).to(torch.int32)
    areas = ones.new_zeros(count, size + 1).scatter_add_(1, keys, ones)
    breaks = ones.new_zeros(count, size + 1)
    breaks.scatter_add_(1, keys, broken.flatten(1).to(torch.int32))
    small = (areas <= max_area) & (breaks == 0)
    holes = small.gather(1, keys).view_as(outside) & outside
    return torch.where(holes, 0.1, logits)


def _spread(values: Tensor) -> Tensor:
    return F.max_pool2d(values.unsqueeze(1), kernel_size=3, stride=1, padding=1)[:, 0]
