"""Sizes of the published DynRefer, and what it needs of a GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from transformers import (
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
)

from fiftyone_regioncap.captioning.dynrefer.configuration import DynReferOptions
from fiftyone_regioncap.captioning.dynrefer.heads import HeadSizes
from fiftyone_regioncap.captioning.dynrefer.model import (
    REGIONS_AT_ONCE,
    Decoding,
    DynReferConfig,
    DynReferModel,
)
from fiftyone_regioncap.models.planning import (
    Footprint,
    Phase,
    bytes_of,
    given,
    parameters_of,
    phase,
    rows_on,
)

TAGS = 4585
"""Tags of the published list."""

CONTROLS = 8
"""Tokens of control words that speed is reckoned with."""

ANSWER = 15
"""Tokens of a caption that speed is reckoned with."""


def published() -> DynReferConfig:
    """Returns the sizes of the authors' checkpoints."""
    return DynReferConfig(
        vision=Blip2VisionConfig(),
        qformer=Blip2QFormerConfig(),
        language=T5Config(
            d_model=2048,
            d_kv=64,
            d_ff=5120,
            num_layers=24,
            num_heads=32,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        ),
        head=HeadSizes(),
    )


def text_tower() -> CLIPTextConfig:
    """Returns the sizes of EVA-CLIP's text tower, which embeds tags and names."""
    return CLIPTextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        projection_dim=1024,
    )


def cache_bytes(config: DynReferConfig, decoding: Decoding, dtype: torch.dtype) -> int:
    """Returns the keys and values of a region's beams, prompt and caption."""
    t5 = config.language
    tokens = config.queries + CONTROLS + decoding.max_new_tokens
    width = t5.num_heads * t5.d_kv * dtype.itemsize
    return 2 * decoding.num_beams * t5.num_decoder_layers * width * tokens


def regions_at_once(model: DynReferModel, decoding: Decoding) -> int:
    """Returns how many regions a model encodes together on its device now."""
    if model.device.type != "cuda":
        return REGIONS_AT_ONCE["cpu"]
    dtype = torch.bfloat16 if model.mixed else torch.float32
    with torch.device("meta"):
        empty = DynReferModel(model.config).eval().requires_grad_(False)
    empty.vision.to(dtype)
    row = phase("encode", 0, partial(_look, empty, dtype)).memory
    row += cache_bytes(model.config, decoding, dtype)
    return rows_on(model.device, int(row), REGIONS_AT_ONCE["cuda"])


def _look(model: DynReferModel, dtype: torch.dtype) -> torch.Tensor:
    """Encodes a region whose tower is in what autocast computes in on a GPU."""
    side, views = model.picture_size, model.config.views
    pixels = torch.empty(views, 3, side, side, dtype=dtype, device="meta")
    rois = torch.empty(1, views, 4, device="meta")
    features = model.vision(pixels).last_hidden_state.float()
    return model.query(model.fuse(features[None], rois))


def footprint(
    weights: str | None, options: DynReferOptions, dtype: torch.dtype
) -> Footprint:
    """Returns what DynRefer needs; its checkpoints have one size.

    Args:
        weights: Not looked at.
        options: Options of prediction.
        dtype: Numeric type; bfloat16 is mixed precision, with the T5 alone stored in
            it.
    """
    config = published()
    with torch.device("meta"):
        model = DynReferModel(config).eval().requires_grad_(False)
        texts = CLIPTextModelWithProjection(text_tower())
    model.language.to(dtype)
    parameters, stored = parameters_of(model, texts), bytes_of(model, texts)
    seen = bytes_of(model) - bytes_of(model.language)
    read = bytes_of(model.language.decoder)
    decoding, t5 = Decoding(), config.language
    beams = options.num_beams or decoding.num_beams
    longest = options.max_new_tokens or decoding.max_new_tokens
    prompt = config.queries + CONTROLS
    side, device = model.picture_size, torch.device("meta")
    model.vision.to(dtype)
    encode = phase("encode", seen, partial(_look, model, dtype))
    words = torch.empty(1, prompt, t5.d_model, dtype=dtype, device=device)
    understand = phase("prompt", 0, lambda: model.language.encoder(inputs_embeds=words))
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    step = phase(
        "decode",
        read,
        lambda: (
            model.language(
                encoder_outputs=(words,), decoder_input_ids=token, use_cache=False
            ).logits
        ),
    )
    decoding = replace(decoding, num_beams=beams, max_new_tokens=longest)
    cache = cache_bytes(config, decoding, dtype)

    def phases(rows: int) -> list[Phase]:
        return [
            Phase("encode", rows * encode.flops, seen, 0),
            Phase("prompt", rows * understand.flops, 0, 0),
            Phase(
                "decode",
                ANSWER * rows * beams * step.flops,
                ANSWER * (read + rows * cache),
                rows * beams * step.memory,
            ),
        ]

    return Footprint(
        name="DynRefer",
        parameters=parameters,
        weights=stored,
        row=int(cache + encode.memory),
        rows=given(options.regions_at_once, REGIONS_AT_ONCE),
        row_name="regions",
        unit="captions",
        phases=phases,
        made=float,
        image_size=side,
        assumptions=(
            f"A caption has {ANSWER} tokens, by {beams} beams; the views go through "
            "the tower in half precision.",
        ),
    )
