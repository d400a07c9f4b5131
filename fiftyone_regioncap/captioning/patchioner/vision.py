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
"""Factor of the query in pseudo heads, whatever their width."""


@dataclass(frozen=True)
class FrameFeatures:
    """One frame after the backbone.

    Attributes:
        grid: Patch grid of the frame.
        patches: Patch features after the final norm, (rows * columns, D), row-major,
            not normalized.
        cls: Image token, (D,); None where the backbone has none.
        registers: Register tokens, (G, D); G may be 0.
        head_logits: Attention logits of the CLS token over the patches per pseudo head,
            (heads, rows * columns), before the softmax; None where there are none.
    """

    grid: Grid
    patches: Tensor
    cls: Tensor | None = None
    registers: Tensor | None = None
    head_logits: Tensor | None = None

    @cached_property
    def attention(self) -> Weights | None:
        """Returns the CLS token's attention, float32 (rows, columns), sum 1.

        The mean over heads before the softmax over patches; because heads part the
        channels, that is softmax(scale / heads * <q, k>) over whole vectors.
        """
        if self.head_logits is None:
            return None
        flat = torch.softmax(self.head_logits.mean(dim=0), dim=0)
        return flat.cpu().numpy().reshape(self.grid.rows, self.grid.columns)

    @property
    def head_attention(self) -> Tensor | None:
        """Returns attention per pseudo head, (heads, rows * columns), rows sum to 1."""
        if self.head_logits is None:
            return None
        return torch.softmax(self.head_logits, dim=1)


class Backbone(Protocol):
    """An image tower with one feature per patch."""

    @property
    def width(self) -> int:
        """Returns the number of channels of a patch feature."""

    @property
    def name(self) -> str:
        """Returns the name, such as ``facebook/dinov2-with-registers-base``."""

    @property
    def device(self) -> torch.device:
        """Returns the device of the model and its features."""

    def encode(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        """Encodes frames, uint8 (H, W, 3) RGB of any sizes, in one pass each."""


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
        frame: RGB frame, uint8 (H, W, 3).
        side: Side of the square input in pixels.
        crop: Keep the aspect ratio and cut the central square out, instead of squashing
            the whole frame into it.
        mean: Mean per channel, of values in [0, 1].
        std: Standard deviation per channel.

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
class _Tower:
    """An image tower of transformers behind a square input.

    Attributes:
        model: The model in eval mode.
        name: Name of the weights.
        side: Side of the square input in pixels.
        crop: Whether frames are cropped to a square, see :func:`preprocess`.
        batch_size: Frames per pass.
    """

    model: Any
    name: str
    side: int
    crop: bool = False
    batch_size: int = 8

    @property
    def device(self) -> torch.device:
        """Returns the device of the model and its features."""
        return self.model.device

    @torch.inference_mode()
    def encode(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        """Encodes frames in batches; see :meth:`Backbone.encode`."""
        encoded: list[FrameFeatures] = []
        for start in range(0, len(frames), self.batch_size):
            encoded += self._pass(frames[start : start + self.batch_size])
        return encoded

    def _pass(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        raise NotImplementedError

    def _inputs(
        self,
        frames: Sequence[Frame],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Tensor:
        return torch.stack(
            [
                preprocess(frame, self.side, crop=self.crop, mean=mean, std=std)
                for frame in frames
            ]
        ).to(self.device, self.model.dtype)

    def _grid(self, frame: Frame) -> Grid:
        """Returns how the patches of the square input lie on a frame."""
        patch = int(self.model.config.patch_size)
        count = self.side // patch
        height, width = frame.shape[:2]
        return Grid(count, count, patch, height, width, self.crop, self.side)


@dataclass(frozen=True)
class DinoTower(_Tower):
    """DINOv2 with registers (Darcet et al. 2024), a ``Dinov2WithRegistersModel``.

    Attributes:
        side: Side of the square input in pixels; a multiple of the patch.
        heads: Pseudo heads of the attention map.
    """

    name: str = "facebook/dinov2-with-registers-base"
    side: int = 518
    heads: int = PSEUDO_HEADS

    @property
    def width(self) -> int:
        """Returns the number of channels of a patch feature."""
        return int(self.model.config.hidden_size)

    def _pass(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        output = self.model(
            pixel_values=self._inputs(frames), output_hidden_states=True
        )
        tokens = output.last_hidden_state.float()
        first = 1 + int(self.model.config.num_register_tokens)
        block = self.model.encoder.layer[-1]
        normed = block.norm1(output.hidden_states[-2])
        query, key = _query_and_key(block.attention)
        queries = query(normed[:, 0]).float().unflatten(-1, (self.heads, -1))
        keys = key(normed[:, first:]).float().unflatten(-1, (self.heads, -1))
        logits = torch.einsum("bhd,bphd->bhp", queries * LOGIT_SCALE, keys)
        return [
            FrameFeatures(
                grid=self._grid(frame),
                patches=tokens[i, first:],
                cls=tokens[i, 0],
                registers=tokens[i, 1:first],
                head_logits=logits[i],
            )
            for i, frame in enumerate(frames)
        ]


@dataclass(frozen=True)
class ClipTower(_Tower):
    """CLIP's image tower, a ``CLIPVisionModelWithProjection``: DeCap's baseline.

    All tokens are normalized and projected like the image token. Position embeddings
    are resampled when the side is not the one they were trained at.
    """

    name: str = "openai/clip-vit-base-patch16"
    side: int = 224
    batch_size: int = 16

    @property
    def width(self) -> int:
        """Returns the number of channels of a patch feature."""
        return int(self.model.config.projection_dim)

    def _pass(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        inputs = self._inputs(frames, CLIP_MEAN, CLIP_STD)
        output = self.model.vision_model(inputs, interpolate_pos_encoding=True)
        normed = self.model.vision_model.post_layernorm(output.last_hidden_state)
        tokens = self.model.visual_projection(normed).float()
        return [
            FrameFeatures(grid=self._grid(frame), patches=row[1:], cls=row[0])
            for frame, row in zip(frames, tokens, strict=True)
        ]


def _query_and_key(attention: Any) -> tuple[Any, Any]:
    """Returns both projections, by their names before and after transformers 5.10."""
    if hasattr(attention, "q_proj"):
        return attention.q_proj, attention.k_proj
    return attention.attention.query, attention.attention.key
