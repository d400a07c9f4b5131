"""A URECA with random weights: what it costs to run, and what it does with bad input.

The published weights cannot be had, so speed and memory on a machine are measured with
these. Captions are noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import InternVLVisionConfig, LlamaConfig, Qwen2Config

from fiftyone_regioncap.captioning.ureca.captioner import UrecaCaptioner
from fiftyone_regioncap.captioning.ureca.config import UrecaConfig
from fiftyone_regioncap.captioning.ureca.configuration import UrecaOptions
from fiftyone_regioncap.captioning.ureca.model import UrecaModel
from fiftyone_regioncap.captioning.ureca.prompts import TOKENS
from fiftyone_regioncap.captioning.ureca.tokenizer import UrecaTokenizer

BYTES = 256

SHARPER = 8
"""What the weights of the language model's attention are multiplied with."""


@dataclass(frozen=True)
class Size:
    """The language model of one of the published sizes of InternVL2.5.

    Attributes:
        family: ``"internlm2"`` or ``"qwen2"``.
        hidden: Width of the hidden states.
        intermediate: Width inside the MLPs.
        layers: Number of layers.
        heads: Number of heads of queries.
        shared_heads: Number of heads of keys and values.
    """

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    shared_heads: int


SIZES = {
    "tiny": Size("qwen2", 64, 128, 2, 4, 2),
    "small": Size("qwen2", 192, 768, 6, 6, 2),
    "1b": Size("qwen2", 896, 4864, 24, 14, 2),
    "2b": Size("internlm2", 2048, 8192, 24, 16, 8),
    "4b": Size("qwen2", 2048, 11008, 36, 16, 2),
    "8b": Size("internlm2", 4096, 14336, 32, 32, 8),
}
"""The published sizes by name, and two for machines without a GPU."""


class ByteVocabulary:
    """Vocabulary in which every byte is a token."""

    bos: int | None = None
    special: Mapping[str, int] = {}

    def __len__(self) -> int:
        return BYTES

    def encode(self, text: str) -> list[int]:
        """Returns the bytes of a text."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Returns a letter a byte."""
        return bytes(ids).decode("latin-1")  # so that no two ids look the same

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns a letter a byte."""
        return [chr(value) for value in ids]


def config_of(size: Size, *, mask_channels: int = 8, tile: int = 448) -> UrecaConfig:
    """Returns the configuration of a size.

    Args:
        size: Size of the language model; the vision tower is InternViT-300M, or one
            that is as much smaller as the language model is than the smallest
            published.
        mask_channels: Number of mask tokens per tile; 8 by default.
        tile: Side of a tile in pixels; 448 by default.
    """
    published = size.hidden >= SIZES["1b"].hidden
    vision = InternVLVisionConfig(
        hidden_size=1024 if published else size.hidden,
        intermediate_size=4096 if published else 4 * size.hidden,
        num_hidden_layers=24 if published else size.layers,
        num_attention_heads=16 if published else size.heads,
        image_size=tile,
        patch_size=14,
        attention_bias=True,
    )
    shared = {
        "vocab_size": BYTES + len(TOKENS),
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.shared_heads,
        "head_dim": size.hidden // size.heads,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": False,
    }
    llm = LlamaConfig(**shared)
    if size.family == "qwen2":
        llm = Qwen2Config(**shared)
    return UrecaConfig(
        family=size.family,
        vision=vision,
        llm=llm,
        tile=tile,
        downsample=0.5,
        mask_channels=mask_channels,
        dynamic_mask=True,
        thumbnail=True,
    )


def random_captioner(
    config: UrecaConfig,
    *,
    options: UrecaOptions | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> UrecaCaptioner:
    """Makes a captioner with random weights and every byte a token.

    Args:
        config: Configuration of the networks.
        options: Options of the captioner.
        device: Device that it runs on; the CPU by default.
        dtype: Type of its weights and activations; float32 by default.
        seed: Seed of the weights; 0 by default.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = UrecaModel(config)
    # Random attention is nearly even, and a mask is few tokens among many: without this
    # all regions would say the same.
    for layer in model.llm.model.layers:
        for part in layer.self_attn.children():
            part.weight.mul_(SHARPER)
    tokens = {token: BYTES + number for number, token in enumerate(TOKENS)}
    return UrecaCaptioner(
        model.to(dtype), UrecaTokenizer(ByteVocabulary(), tokens), options
    )
