"""Sizes of URECA on each InternVL2.5, and what they need of a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import InternVLVisionConfig, LlamaConfig, Qwen2Config

from fiftyone_regioncap.captioning.dam.language import Cache, Decoder, row_bytes
from fiftyone_regioncap.captioning.ureca.config import UrecaConfig
from fiftyone_regioncap.captioning.ureca.configuration import UrecaOptions
from fiftyone_regioncap.captioning.ureca.model import (
    REGIONS_AT_ONCE,
    TILES_AT_ONCE,
    UrecaModel,
)
from fiftyone_regioncap.captioning.ureca.weights import mask_channels
from fiftyone_regioncap.models.planning import (
    Footprint,
    Phase,
    bytes_of,
    given,
    parameters_of,
    phase,
    rows_on,
)


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
        vocabulary: Number of tokens, URECA's own included.
    """

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    shared_heads: int
    vocabulary: int = 0


PUBLISHED = {
    "1b": Size("qwen2", 896, 4864, 24, 14, 2, 151677),
    "2b": Size("internlm2", 2048, 8192, 24, 16, 8, 92556),
    "4b": Size("qwen2", 2048, 11008, 36, 16, 2, 151677),
    "8b": Size("internlm2", 4096, 14336, 32, 32, 8, 92556),
}
"""Sizes of InternVL2.5 by name; the paper's numbers are those of 8b."""

WORDS = 60
"""Tokens of a prompt beside image and mask, nearly."""

ANSWER = 60
"""Tokens of a caption that speed is reckoned with."""


def config_of(
    size: Size, vocabulary: int | None = None, mask_channels: int = 8, tile: int = 448
) -> UrecaConfig:
    """Returns the configuration of a size.

    Args:
        size: Size of the language model; the vision tower is InternViT-300M, or one
            that is as much smaller as the language model is than the smallest
            published.
        vocabulary: Number of tokens; None for the size's own.
        mask_channels: Number of mask tokens per tile; 8 by default.
        tile: Side of a tile in pixels; 448 by default.
    """
    published = size.hidden >= PUBLISHED["1b"].hidden
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
        "vocab_size": vocabulary or size.vocabulary,
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


def read_config(weights: str | None) -> tuple[UrecaConfig, str]:
    """Returns the configuration of a checkpoint's folder, or a published one's.

    Args:
        weights: Folder of a checkpoint, or a published size such as ``"4b"``; 8b for
            anything else.

    Returns:
        The configuration and its name.
    """
    folder = Path(weights or "").expanduser()
    if weights is None or not folder.is_dir():
        size = next((one for one in PUBLISHED if one == str(weights).lower()), "8b")
        return config_of(PUBLISHED[size]), f"InternVL2.5-{size}"
    config = UrecaConfig.read(folder)
    if config.mask_channels is None:
        config = replace(config, mask_channels=mask_channels(folder))
    return config, folder.name


def own_tokens(config: UrecaConfig, options: UrecaOptions) -> int:
    """Returns the most tokens of a prompt that no other region shares, nearly."""
    assert config.mask_channels is not None
    return (options.max_tiles + config.thumbnail) * config.mask_channels + WORDS


def region_bytes(config: UrecaConfig, options: UrecaOptions, dtype: torch.dtype) -> int:
    """Returns the cache of a region, without what it shares with others."""
    longest = own_tokens(config, options) + options.max_new_tokens
    return row_bytes(config.llm, longest, dtype)


def regions_at_once(
    config: UrecaConfig, options: UrecaOptions, device: torch.device, dtype: torch.dtype
) -> int:
    """Returns how many captions are written together on a device now."""
    if device.type != "cuda":
        return REGIONS_AT_ONCE["cpu"]
    row = region_bytes(config, options, dtype)
    return rows_on(device, row, REGIONS_AT_ONCE["cuda"])


def footprint(
    weights: str | None, options: UrecaOptions, dtype: torch.dtype
) -> Footprint:
    """Returns what URECA needs.

    Args:
        weights: Folder of a checkpoint, or a published size such as ``"4b"``; 8b for
            anything else.
        options: Options of captioning.
        dtype: Numeric type that it computes in.
    """
    config, name = read_config(weights)
    with torch.device("meta"):
        model = UrecaModel(config).to(dtype)
    side, device = config.tile, torch.device("meta")
    tiles, own = options.max_tiles + config.thumbnail, own_tokens(config, options)
    prompt = tiles * config.tokens_per_tile
    seen, read = bytes_of(model.vision, model.projector), bytes_of(model.llm)
    picture = torch.empty(1, side, side, 3, dtype=torch.uint8, device=device)
    encode = phase("encode", seen, lambda: model.image_tokens(picture))
    cache = Cache(config.llm, 1, prompt + own, device, dtype)
    decoder = Decoder(model.llm, cache, graphs=False)
    words = torch.empty(1, prompt, config.llm.hidden_size, dtype=dtype, device=device)
    prefix = phase("prefill", read, lambda: decoder.prefill(words, [0]))
    rest = phase("prefill", read, lambda: decoder.prefill(words[:, :own], [0]))
    token = torch.zeros(1, dtype=torch.int64, device=device)
    step = phase("decode", read, lambda: decoder.step(token, token, prompt + own - 1))
    shared = row_bytes(config.llm, prompt, dtype)
    row = region_bytes(config, options, dtype)

    def phases(rows: int) -> list[Phase]:
        at_once = min(TILES_AT_ONCE["cuda"], tiles)
        return [
            Phase("encode", tiles * encode.flops, seen, at_once * encode.memory),
            Phase(
                "prefill",
                prefix.flops + rows * rest.flops,
                (1 + rows) * read,
                shared + max(prefix.memory, rest.memory),
            ),
            Phase(
                "decode",
                ANSWER * rows * step.flops,
                ANSWER * (read + rows * (row + shared)),
                shared + rows * step.memory,
            ),
        ]

    return Footprint(
        name=name,
        parameters=parameters_of(model),
        weights=bytes_of(model),
        row=row,
        rows=given(options.regions_at_once, REGIONS_AT_ONCE),
        row_name="regions of a frame",
        unit="captions",
        phases=phases,
        made=float,
        image_size=side,
        assumptions=(
            f"A frame is cut into {tiles} tiles of {prompt} tokens, which its regions "
            f"share; a caption has {ANSWER} tokens of at most "
            f"{options.max_new_tokens}.",
        ),
    )
