"""The image towers: one pass per frame gives all that any region of it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fiftyone_regioncap.captioning.patchioner.aggregation import Grid, Weights
from fiftyone_regioncap.core.types import Frame

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

PSEUDO_HEADS = 16
"""Heads that the published models split the last block's query and keys into.

The backbone has 12; the averaged map only changes its temperature by that, and the
published memory and decoders were chosen with it, so it stays.
"""

LOGIT_SCALE = 0.125
"""What pseudo heads scale the query by, whatever their width."""


@dataclass(frozen=True)
class FrameFeatures:
    """One frame after the backbone.

    Attributes:
        grid: how the patches lie on the frame.
        patches: (rows * columns, D) after the final norm, row-major, not normalized.
        cls: (D,) the image token, or None where the backbone has none.
        registers: (G, D) register tokens; G may be 0.
        head_logits: (heads, rows * columns) attention logits of the CLS token over the
            patches per pseudo head, before the softmax; None where there are none.
    """

    grid: Grid
    patches: Tensor
    cls: Tensor | None = None
    registers: Tensor | None = None
    head_logits: Tensor | None = None

    @cached_property
    def attention(self) -> Weights | None:
        """The CLS token's attention, float32 (rows, columns), sum 1.

        The mean over heads before the softmax over patches; because heads part the
        channels, that is softmax(scale / heads * <q, k>) over whole vectors.
        """
        if self.head_logits is None:
            return None
        flat = torch.softmax(self.head_logits.mean(dim=0), dim=0)
        return flat.cpu().numpy().reshape(self.grid.rows, self.grid.columns)

    @property
    def head_attention(self) -> Tensor | None:
        """Each pseudo head's own attention, (heads, rows * columns), rows sum to 1."""
        if self.head_logits is None:
            return None
        return torch.softmax(self.head_logits, dim=1)


class Backbone(Protocol):
    """An image tower with one feature per patch."""

    @property
    def width(self) -> int:
        """D, the number of channels of a patch feature."""

    @property
    def name(self) -> str:
        """Of the weights, as in ``facebook/dinov2-with-registers-base``."""

    @property
    def device(self) -> torch.device:
        """Where it runs and its features lie."""

    def encode(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        """One pass over each frame, uint8 (H, W, 3) RGB of any sizes."""


def preprocess(
    frame: Frame,
    side: int,
    *,
    crop: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Resizes and normalizes a frame as the published evaluations do.

    Args:
        frame: uint8 (H, W, 3) RGB.
        side: of the square input in pixels.
        crop: keep the aspect ratio and cut the central square out, instead of squashing
            the whole frame into it.
        mean: per channel, of values in [0, 1].
        std: per channel.

    Returns:
        float32 (3, side, side).
    """
    image = Image.fromarray(frame)
    if crop:
        short = min(image.size)
        width, height = (int(side * length / short) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
    else:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    scaled = pixels.to(torch.float32).div(255)
    return scaled.sub(torch.tensor(mean)[:, None, None]).div(
        torch.tensor(std)[:, None, None]
    )


@dataclass(frozen=True)
class DinoTower:
    """DINOv2 with registers (Darcet et al. 2024) through transformers.

    Attributes:
        model: a ``Dinov2WithRegistersModel`` in eval mode.
        name: of the weights.
        side: of the square input in pixels; a multiple of the patch.
        crop: see :func:`preprocess`.
        heads: pseudo heads of the attention map.
        batch_size: frames per pass.
    """

    model: Any
    name: str = "facebook/dinov2-with-registers-base"
    side: int = 518
    crop: bool = False
    heads: int = PSEUDO_HEADS
    batch_size: int = 8

    @property
    def width(self) -> int:
        """D, the number of channels of a patch feature."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where it runs and its features lie."""
        return self.model.device

    @torch.inference_mode()
    def encode(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        """One pass over each frame; see :meth:`Backbone.encode`."""
        encoded: list[FrameFeatures] = []
        for start in range(0, len(frames), self.batch_size):
            encoded += self._pass(frames[start : start + self.batch_size])
        return encoded

    def _pass(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        inputs = torch.stack(
            [preprocess(frame, self.side, crop=self.crop) for frame in frames]
        ).to(self.device, self.model.dtype)
        output = self.model(pixel_values=inputs, output_hidden_states=True)
        tokens = output.last_hidden_state.float()
        registers = int(self.model.config.num_register_tokens)
        first = 1 + registers
        block = self.model.encoder.layer[-1]
        normed = block.norm1(output.hidden_states[-2])
        query, key = _query_and_key(block.attention)
        queries = query(normed[:, 0]).float().unflatten(-1, (self.heads, -1))
        keys = key(normed[:, first:]).float().unflatten(-1, (self.heads, -1))
        logits = torch.einsum("bhd,bphd->bhp", queries * LOGIT_SCALE, keys)
        patch = int(self.model.config.patch_size)
        return [
            FrameFeatures(
                grid=grid_of(frame, self.side, patch, self.crop),
                patches=tokens[i, first:],
                cls=tokens[i, 0],
                registers=tokens[i, 1:first],
                head_logits=logits[i],
            )
            for i, frame in enumerate(frames)
        ]


def grid_of(frame: Frame, side: int, patch: int, crop: bool) -> Grid:
    """How the patches of a square input lie on a frame, uint8 (H, W, 3)."""
    count = side // patch
    height, width = frame.shape[:2]
    return Grid(count, count, patch, height, width, crop, side)


def _query_and_key(attention: Any) -> tuple[Any, Any]:
    """The two projections, by the names of transformers before and after 5.10."""
    if hasattr(attention, "q_proj"):
        return attention.q_proj, attention.k_proj
    return attention.attention.query, attention.attention.key
