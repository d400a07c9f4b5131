"""CLIP's image tower as a backbone: the paper's DeCap baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fiftyone_regioncap.captioning.patchioner.vision import (
    CLIP_MEAN,
    CLIP_STD,
    FrameFeatures,
    grid_of,
    preprocess,
)
from fiftyone_regioncap.core.types import Frame


@dataclass(frozen=True)
class ClipTower:
    """All tokens of a CLIP image tower, normed and projected like its image token.

    Attributes:
        model: a ``CLIPVisionModelWithProjection`` in eval mode.
        name: of the weights.
        side: of the square input in pixels; position embeddings are resampled when it
            is not the one they were trained at.
        crop: see :func:`~.vision.preprocess`.
        batch_size: frames per pass.
    """

    model: Any
    name: str = "openai/clip-vit-base-patch16"
    side: int = 224
    crop: bool = False
    batch_size: int = 16

    @property
    def width(self) -> int:
        """D, the number of channels of a patch feature."""
        return int(self.model.config.projection_dim)

    @property
    def device(self) -> torch.device:
        """Where it runs and its features lie."""
        return self.model.device

    @torch.inference_mode()
    def encode(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        """One pass over each frame; see :meth:`~.vision.Backbone.encode`."""
        patch = int(self.model.config.patch_size)
        encoded: list[FrameFeatures] = []
        for start in range(0, len(frames), self.batch_size):
            batch = frames[start : start + self.batch_size]
            inputs = torch.stack(
                [
                    preprocess(
                        frame, self.side, crop=self.crop, mean=CLIP_MEAN, std=CLIP_STD
                    )
                    for frame in batch
                ]
            ).to(self.device, self.model.dtype)
            output = self.model.vision_model(inputs, interpolate_pos_encoding=True)
            normed = self.model.vision_model.post_layernorm(output.last_hidden_state)
            tokens = self.model.visual_projection(normed).float()
            encoded += [
                FrameFeatures(
                    grid=grid_of(frame, self.side, patch, self.crop),
                    patches=row[1:],
                    cls=row[0],
                )
                for frame, row in zip(batch, tokens, strict=True)
            ]
        return encoded
