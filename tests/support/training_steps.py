"""Single training steps, without the loop, FiftyOne or files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

from fiftyone_regioncap.captioning.trainable import Trainable, TrainingText
from fiftyone_regioncap.core.types import RegionClip


def training_batch(
    recipe: Trainable, clips: Sequence[RegionClip], device: str | torch.device
) -> dict[str, Any]:
    """Returns what a recipe makes of clips that say the same, on a device."""
    text = TrainingText("a red car on a road")
    samples = [recipe.encode(clip, text, random.Random(1)) for clip in clips]
    return tree_map(
        lambda x: x.to(device) if isinstance(x, torch.Tensor) else x,
        dict(recipe.collate(samples)),
    )
