"""Conversion of a user's prompts on a frame to a first mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.mobilesam.segmenter import (
    CERTAIN,
    Grid,
    MobileSam,
)


def prompted_logits(
    model: MobileSam, embedding: Tensor, grid: Grid, prompts: Sequence[Prompt]
) -> Tensor:
    """Returns the mask logits of an object's prompts on a frame.

    Masks are taken as they are; boxes and points go through the mask decoder. Several
    prompts mean the union of what each means.

    Args:
        model: MobileSAM model.
        embedding: Image embedding of the frame.
        grid: Cell grid of the frame.
        prompts: Prompts of one object on this frame, at least one.

    Returns:
        float (H, W), above 0 on the object.
    """
    return torch.stack(
        [_logits(model, embedding, grid, prompt) for prompt in prompts]
    ).amax(dim=0)


def _logits(model: MobileSam, embedding: Tensor, grid: Grid, prompt: Prompt) -> Tensor:
    if prompt.mask is not None:
        mask = torch.from_numpy(prompt.mask).to(model.device)
        return torch.where(mask, CERTAIN, -CERTAIN)
    boxes = None if prompt.box is None else np.array([prompt.box], dtype=np.float32)
    points = signs = None
    if prompt.points is not None:
        points = np.asarray(prompt.points, dtype=np.float32)[None]
        signs = (
            np.ones(points.shape[:2], dtype=np.int64)
            if prompt.point_signs is None
            else np.asarray(prompt.point_signs, dtype=np.int64)[None]
        )
    ambiguous = boxes is None and signs is not None and signs.size == 1
    return model.decode(
        embedding,
        grid,
        boxes=boxes,
        points=points,
        point_signs=signs,
        best_of_three=ambiguous,
    ).logits[0]
