"""Prompts as the model wants them: per object and frame, in model pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fiftyone_regioncap.core.types import Mask, Prompt

ON, OFF, TOP_LEFT, BOTTOM_RIGHT = 1, 0, 2, 3


@dataclass(frozen=True)
class FramePrompt:
    """All that is said of one object on one frame, in video pixels.

    Attributes:
        points: float32 (N, 2) of x, y; a box is its two corners, first. None when there
            is only a mask.
        labels: int32 (N,): 1 on the object, 0 off it, 2 and 3 the corners of the box.
        mask: bool (H, W), or None. Beside points it is refined by them; alone it is
            taken as it is.
    """

    points: Tensor | None
    labels: Tensor | None
    mask: Mask | None


def merge_prompts(
    prompts: Sequence[Prompt],
) -> dict[int, dict[int, FramePrompt]]:
    """Puts together what is said of each object on each frame.

    Points add up, boxes become the box around them, masks become their union.

    Returns:
        by object id in order of appearance, then by frame, ascending.
    """
    grouped: dict[int, dict[int, list[Prompt]]] = {}
    for prompt in prompts:
        frames = grouped.setdefault(prompt.object_id, {})
        frames.setdefault(prompt.frame, []).append(prompt)
    return {
        object_id: {frame: _merge(frames[frame]) for frame in sorted(frames)}
        for object_id, frames in grouped.items()
    }


def _merge(prompts: Sequence[Prompt]) -> FramePrompt:
    points: list[tuple[float, float]] = []
    labels: list[int] = []
    boxes = np.array([prompt.box for prompt in prompts if prompt.box is not None])
    if len(boxes):
        points += [tuple(boxes[:, :2].min(axis=0)), tuple(boxes[:, 2:].max(axis=0))]
        labels += [TOP_LEFT, BOTTOM_RIGHT]
    for prompt in prompts:
        if prompt.points is None:
            continue
        points += [(float(x), float(y)) for x, y in prompt.points]
        signs = prompt.point_signs
        labels += (
            [ON] * len(prompt.points)
            if signs is None
            else [ON if sign else OFF for sign in signs]
        )
    masks = [prompt.mask for prompt in prompts if prompt.mask is not None]
    return FramePrompt(
        points=torch.tensor(points, dtype=torch.float32) if points else None,
        labels=torch.tensor(labels, dtype=torch.int32) if points else None,
        mask=np.logical_or.reduce(masks) if masks else None,
    )


def model_points(
    prompts: Sequence[FramePrompt], height: int, width: int, image_size: int
) -> tuple[Tensor, Tensor]:
    """Points of several objects, which have equally many, in model pixels.

    Returns:
        float32 (B, N, 2) of x, y, and int32 (B, N) labels.
    """
    points = torch.stack([p.points for p in prompts if p.points is not None])
    labels = torch.stack([p.labels for p in prompts if p.labels is not None])
    scale = torch.tensor([image_size / width, image_size / height])
    return points * scale, labels


def model_masks(prompts: Sequence[FramePrompt], image_size: int) -> Tensor:
    """Masks of several objects, resized as SAM 2 does it.

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


def prompt_kind(prompt: FramePrompt) -> tuple[int, bool]:
    """Prompts of one kind go through the model in one batch: points and mask."""
    return (0 if prompt.points is None else len(prompt.points), prompt.mask is not None)


def fingerprint(prompts: Mapping[int, Mapping[int, FramePrompt]]) -> bytes:
    """Bytes that differ when the prompts do."""
    parts: list[bytes] = []
    for object_id, frames in prompts.items():
        for frame, prompt in frames.items():
            parts.append(f"{object_id}@{frame}".encode())
            if prompt.points is not None and prompt.labels is not None:
                parts += [
                    prompt.points.numpy().tobytes(),
                    prompt.labels.numpy().tobytes(),
                ]
            if prompt.mask is not None:
                parts.append(np.packbits(prompt.mask).tobytes())
    return b"|".join(parts)
