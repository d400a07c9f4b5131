"""URECA's networks: InternVL2.5 with an encoder that turns masks into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    InternVLConfig,
    InternVLVisionModel,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
)
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from fiftyone_regioncap.captioning.ureca.config import UrecaConfig
from fiftyone_regioncap.captioning.ureca.tiling import normalize
from fiftyone_regioncap.captioning.ureca.weights import convert, of_family
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.models.loading import load_strict, read_tensors

REGIONS_AT_ONCE = {"cuda": 32, "cpu": 16}
"""Captions that are written together, where memory allows."""

TILES_AT_ONCE = {"cuda": 32, "cpu": 4}
"""Tiles that go through the vision tower together."""


class UrecaModel(nn.Module):
    """The networks of one checkpoint.

    Args:
        config: Configuration of the checkpoint, with the number of mask channels.

    Attributes:
        config: Configuration of the checkpoint.
        vision: Vision tower, an InternViT.
        projector: Projection of pixel-shuffled patches to the language model's width.
        mask_encoder: Two convolutions of stride 2 over a mask.
        mask_linear: Linear layer from each feature map to a token.
        llm: Qwen2, or InternLM2 as a Llama.
    """

    def __init__(self, config: UrecaConfig) -> None:
        super().__init__()
        channels = config.mask_channels
        if channels is None:
            raise ValueError("the number of mask channels is not known")
        self.config = config
        self.projector = InternVLMultiModalProjector(
            InternVLConfig(
                vision_config=config.vision,
                text_config=config.llm,
                downsample_ratio=config.downsample,
                tie_word_embeddings=False,
            )
        )
        # After the projector: the whole's config takes the attention that its parts'
        # configs had chosen away from them.
        self.vision = InternVLVisionModel(config.vision)
        self.mask_encoder = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.mask_linear = nn.Linear(config.mask_map**2, config.llm.hidden_size)
        family = Qwen2ForCausalLM if config.family == "qwen2" else LlamaForCausalLM
        self.llm = family(config.llm)
        self.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        config: UrecaConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> UrecaModel:
        """Loads the weights of a checkpoint.

        Args:
            folder: Folder with safetensors under the published names.
            config: Configuration read from the same folder.
            device: Torch device to run on.
            dtype: Numeric type of the computation.

        Raises:
            WeightsError: When the weights don't fit.
        """
        with torch.device("meta"):
            model = cls(config)
        tensors = of_family(read_tensors(folder), folder, config)
        load_strict(model, convert(tensors, config), folder, device=device, dtype=dtype)
        # Frequencies are no weights: they were left without memory.
        rotary = Qwen2RotaryEmbedding if config.family == "qwen2" else None
        rotary = rotary or LlamaRotaryEmbedding
        model.llm.model.rotary_emb = rotary(config.llm).to(device)
        return model

    @property
    def device(self) -> torch.device:
        """Returns the device that the model is on."""
        return self.mask_linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Returns the numeric type that the model computes in."""
        return self.mask_linear.weight.dtype

    def image_tokens(self, tiles: Tensor) -> Tensor:
        """Encodes tiles of images as tokens.

        Args:
            tiles: Image tiles of :func:`tiling.image_tiles`, uint8 (T, S, S, 3).

        Returns:
            (T, M, D): M tokens a tile, D the language model's width.
        """
        parts = []
        for some in tiles.split(TILES_AT_ONCE.get(self.device.type, 4)):
            pixels = normalize(some.to(self.device)).to(self.dtype)
            patches = self.vision(pixels).last_hidden_state[:, 1:]
            parts.append(self.projector(self._shuffled(patches)))
        return torch.cat(parts)

    def _shuffled(self, patches: Tensor) -> Tensor:
        """Moves neighboring patches into channels, in InternVL's order ("v2")."""
        side = round(patches.shape[1] ** 0.5)
        fewer = int(side * self.config.downsample)
        more = side // fewer
        grid = patches.unflatten(1, (fewer, more, fewer, more))
        return grid.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)

    def mask_maps(self, masks: Tensor) -> Tensor:
        """Computes the mask encoder's feature maps.

        Args:
            masks: Mask tiles of :func:`tiling.mask_tiles` or
                :func:`tiling.static_mask`, uint8 (T, S, S).

        Returns:
            (T, N, S / 4, S / 4).
        """
        return self.mask_encoder(masks[:, None].to(self.device, self.dtype))

    def mask_tokens(self, masks: Tensor) -> Tensor:
        """Encodes tiles of a mask, uint8 (T, S, S), as N tokens each: (T, N, D)."""
        return self.mask_linear(self.mask_maps(masks).flatten(2))

    def embed(
        self,
        ids: Sequence[int] | Tensor,
        places: Sequence[tuple[int, Tensor]],
    ) -> Tensor:
        """Returns the language model's input.

        Args:
            ids: Token ids of the prompt or a part of it.
            places: Pairs of a placeholder id and the embeddings (..., D) that replace
                it, in order.

        Returns:
            (length, D).

        Raises:
            PromptError: When places and tokens are not equally many.
        """
        known = torch.as_tensor(ids, dtype=torch.int64)
        embeddings = self.llm.model.embed_tokens(known.to(self.device))
        for token, features in places:
            there = known == token
            rows = features.flatten(0, -2)
            if int(there.sum()) != len(rows):
                raise PromptError(
                    f"the prompt has {int(there.sum())} places of token {token} for "
                    f"{len(rows)} features; leave context tokens out of the text"
                )
            places_on_device = there[:, None].to(self.device)
            embeddings = embeddings.masked_scatter(places_on_device, rows)
        return embeddings
