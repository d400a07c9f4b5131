"""Conversion of prompts to tensors in model pixels, for batches of objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.types import Prompt

_CORNERS = (2, 3)
"""Labels of a box's top left and bottom right; points are 1 on the object, 0 off it."""


def prompt_kind(prompt: Prompt) -> tuple[int, bool]:
    """Returns the number of points, a box counted as two, and whether there is a mask.

    Prompts of one kind go through the model in one batch.
    """
    return len(_points(prompt)), prompt.mask is not None


def model_points(
    prompts: Sequence[Prompt], height: int, width: int, image_size: int
) -> tuple[Tensor, Tensor]:
    """Returns points of several objects in model pixels, a box's two corners first.

    Args:
        prompts: One prompt of each object, all with the same number of points.
        height: Height of the video's frames in pixels.
        width: Width of the video's frames in pixels.
        image_size: Side of the square that frames are resized to, in pixels.

    Returns:
        float32 (B, N, 2) of x, y, and int32 (B, N) labels.
    """
    points = torch.from_numpy(np.stack([_points(p) for p in prompts])).float()
    labels = np.stack(
        [[*(_CORNERS if p.box is not None else ()), *p.signs] for p in prompts]
    )
    scale = torch.tensor([image_size / width, image_size / height])
    return points * scale, torch.from_numpy(labels.astype(np.int32))


def _points(prompt: Prompt) -> NDArray[np.float64]:
    corners = np.reshape(prompt.box, (2, 2)) if prompt.box else np.zeros((0, 2))
    return (
        corners if prompt.points is None else np.concatenate([corners, prompt.points])
    )


def model_masks(prompts: Sequence[Prompt], image_size: int) -> Tensor:
    """Masks of several objects, resized as SAM 2 does it.

    Args:
        prompts: One prompt of each object, all with a mask.
        image_size: Side of the square that frames are resized to, in pixels.

    Returns:
        float32 (B, 1, S, S), 0 or 1.
    """
    masks = torch.from_numpy(np.stack([p.mask for p in prompts if p.mask is not None]))
    resized = masks.float().unsqueeze(1)
    if resized.shape[-2:] != (image_size, image_size):
        resized = F.interpolate(
            resized,
            size=(image_size, image_size),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        # SAM 2 cuts at 0.5; a mask too thin to reach that keeps its strongest pixels.
        strongest = resized.amax(dim=(2, 3), keepdim=True)
        resized = (resized >= strongest.clamp(max=0.5)).float()
    return resized
