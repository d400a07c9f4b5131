"""A URECA with random weights: what it costs to run, and what it does with bad input.

The published weights cannot be had, so speed and memory on a machine are measured with
these. Captions are noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fiftyone_regioncap.captioning.ureca import sizes
from fiftyone_regioncap.captioning.ureca.captioner import UrecaCaptioner
from fiftyone_regioncap.captioning.ureca.config import UrecaConfig
from fiftyone_regioncap.captioning.ureca.configuration import UrecaOptions
from fiftyone_regioncap.captioning.ureca.model import UrecaModel
from fiftyone_regioncap.captioning.ureca.prompts import TOKENS
from fiftyone_regioncap.captioning.ureca.sizes import PUBLISHED, Size
from fiftyone_regioncap.captioning.ureca.tokenizer import UrecaTokenizer

BYTES = 256

SHARPER = 8
"""What the weights of the language model's attention are multiplied with."""


SIZES = {
    "tiny": Size("qwen2", 64, 128, 2, 4, 2),
    "small": Size("qwen2", 192, 768, 6, 6, 2),
    **PUBLISHED,
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
    """Returns the configuration of a size, with a vocabulary of bytes.

    Args:
        size: Size of the language model.
        mask_channels: Number of mask tokens per tile; 8 by default.
        tile: Side of a tile in pixels; 448 by default.
    """
    return sizes.config_of(size, BYTES + len(TOKENS), mask_channels, tile)


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
