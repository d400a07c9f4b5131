"""Sizes of the published DAM models, and what they need of a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fiftyone_regioncap.captioning.dam.captioner import ROWS
from fiftyone_regioncap.captioning.dam.config import (
    AdapterConfig,
    DAMConfig,
    EncoderConfig,
    ImageConfig,
)
from fiftyone_regioncap.captioning.dam.configuration import DamOptions
from fiftyone_regioncap.captioning.dam.language import Cache, Decoder, row_bytes
from fiftyone_regioncap.captioning.dam.model import DAM, PREFILL_TOKENS, VIEW_BATCH
from fiftyone_regioncap.captioning.dam.prompts import VIDEO_FRAMES
from fiftyone_regioncap.captioning.dam.scheduler import ENCODED_AT_ONCE
from fiftyone_regioncap.captioning.dam.vision import FocalEncoder, Projector
from fiftyone_regioncap.models.planning import (
    Footprint,
    Phase,
    bytes_of,
    given,
    parameters_of,
    phase,
)

_HALF = (0.5, 0.5, 0.5)

DAM_3B = DAMConfig(
    image=ImageConfig(384, 3, 1 / 255, _HALF, _HALF, pad=False),
    vision=EncoderConfig(1152, 4304, 27, 16, 1e-6, "gelu_pytorch_tanh"),
    patch_size=14,
    used_layers=26,
    adapters=AdapterConfig(),
    llm=LlamaConfig(
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=32,
        num_attention_heads=20,
        num_key_value_heads=20,
        head_dim=128,
        vocab_size=32000,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
    ),
    context=4096,
)
"""The sizes of the published 3B models."""

PROMPT_WORDS = 150
"""Tokens of a prompt beside its images, nearly."""

ANSWER = 100
"""Tokens of a caption that speed is reckoned with."""


def config_of(weights: str | None) -> tuple[DAMConfig, str]:
    """Returns the configuration of a checkpoint's folder, or the published one's.

    Args:
        weights: Folder of a checkpoint; the published sizes for anything else.

    Returns:
        The configuration and its name.
    """
    folder = Path(weights or "").expanduser()
    if weights is None or not folder.is_dir():
        return DAM_3B, "DAM-3B"
    return DAMConfig.read(folder), folder.name


def empty_dam(config: DAMConfig, dtype: torch.dtype) -> DAM:
    """Returns a model on the meta device: shapes without weights or tokenizer."""
    with torch.device("meta"):
        encoder, projector = FocalEncoder(config), Projector(config)
        llm = LlamaForCausalLM(config.llm)
    tokenizer: Any = None
    return DAM(config, tokenizer, encoder.to(dtype), projector.to(dtype), llm.to(dtype))


def footprint(
    weights: str | None, options: DamOptions, dtype: torch.dtype, images: int = 1
) -> Footprint:
    """Returns what DAM needs.

    Args:
        weights: Folder of a checkpoint; the published sizes for anything else.
        options: Options of captioning.
        dtype: Numeric type that it computes in.
        images: Number of images of a prompt.
    """
    config, name = config_of(weights)
    dam = empty_dam(config, dtype)
    prompt = images * config.tokens_per_image + PROMPT_WORDS
    longest = min(prompt + options.max_new_tokens, config.context)
    seen = bytes_of(dam.encoder, dam.projector)
    read = language_bytes(dam.llm, options.quantization)
    at_once = min(VIEW_BATCH["cuda"], ENCODED_AT_ONCE * images)
    side = config.image.size
    views = torch.empty(1, 8, side, side, dtype=torch.uint8, device="meta")
    distinct = torch.ones(1, dtype=torch.bool)
    encode = phase("encode", seen, lambda: dam.encode(views, distinct))
    cache = Cache(config.llm, 1, prompt + 1, dam.device, dtype)
    decoder = Decoder(dam.llm, cache, graphs=False)
    words = torch.empty(1, prompt, config.llm.hidden_size, dtype=dtype, device="meta")
    prefill = phase("prefill", read, lambda: decoder.prefill(words, [0]))
    token = torch.zeros(1, dtype=torch.int64, device="meta")
    step = phase("decode", read, lambda: decoder.step(token, token, prompt))
    middle = row_bytes(config.llm, prompt + ANSWER // 2, dtype)
    read_at_once = max(PREFILL_TOKENS["cuda"] // prompt, 1)

    def phases(rows: int) -> list[Phase]:
        pictures, prompts = rows * images, min(rows, ENCODED_AT_ONCE)
        return [
            Phase(
                "encode",
                pictures * encode.flops,
                -(-pictures // at_once) * seen,
                min(pictures, at_once) * encode.memory,
            ),
            Phase(
                "prefill",
                rows * prefill.flops,
                -(-rows // min(prompts, read_at_once)) * read,
                min(prompts, read_at_once) * prefill.memory,
            ),
            Phase(
                "decode",
                ANSWER * rows * step.flops,
                ANSWER * (read + rows * middle),
                rows * step.memory,
            ),
        ]

    return Footprint(
        name=name,
        parameters=parameters_of(dam.encoder, dam.projector, dam.llm),
        weights=seen + read,
        row=row_bytes(config.llm, longest, dtype),
        rows=given(options.rows, ROWS),
        row_name="captions",
        unit="captions",
        phases=phases,
        made=float,
        image_size=config.image.size,
        assumptions=(
            f"A prompt has {prompt} tokens, a caption {ANSWER} of at most "
            f"{options.max_new_tokens}.",
        ),
    )


def video_footprint(
    weights: str | None, options: DamOptions, dtype: torch.dtype
) -> Footprint:
    """Returns what DAM needs for tracks; see :func:`footprint`."""
    return footprint(weights, options, dtype, VIDEO_FRAMES)


def language_bytes(llm: nn.Module, quantization: str | None) -> int:
    """Returns the bytes of the language model's weights, its layers quantized or not.

    Args:
        llm: The language model.
        quantization: ``"8bit"``, ``"4bit"`` or None; see :mod:`~.quantization`.
    """
    whole = bytes_of(llm)
    if quantization is None:
        return whole
    layers = [
        module
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    bits = {"8bit": 8, "4bit": 4}[quantization]
    return whole - bytes_of(*layers) + parameters_of(*layers) * bits // 8
