"""Sizes of the published Patch-ioner, and what it needs of a GPU."""

from __future__ import annotations

import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from fiftyone_regioncap.captioning.patchioner.configuration import PatchionerOptions
from fiftyone_regioncap.captioning.patchioner.decoder import STEPS, PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.gpt2 import Gpt2Config
from fiftyone_regioncap.captioning.patchioner.memory import ROWS_AT_ONCE
from fiftyone_regioncap.captioning.patchioner.vision import DinoTower
from fiftyone_regioncap.models.planning import (
    Footprint,
    Phase,
    bytes_of,
    parameters_of,
    phase,
)

MEMORY = 591_753
"""Captions in the memory of the published model."""

REGIONS = 64
"""Regions that are described together."""


def published() -> Dinov2WithRegistersConfig:
    """Returns the sizes of the published backbone, DINOv2 base with registers."""
    return Dinov2WithRegistersConfig(image_size=518, patch_size=14)


def footprint(
    weights: str | None, options: PatchionerOptions, dtype: torch.dtype
) -> Footprint:
    """Returns what the published Patch-ioner needs.

    Args:
        weights: Not looked at.
        options: Options of captioning.
        dtype: Numeric type that it computes in.
    """
    config = published()
    with torch.device("meta"):
        tower = Dinov2WithRegistersModel(config).to(dtype)
        decoder = PrefixDecoder(config.hidden_size, Gpt2Config()).to(dtype)
    side, device = options.resize_dim or DinoTower.side, torch.device("meta")
    pixels = torch.empty(1, 3, side, side, dtype=dtype, device=device)
    seen, read = bytes_of(tower), bytes_of(decoder)
    memory = MEMORY * config.hidden_size * dtype.itemsize
    encode = phase("encode", seen, lambda: tower(pixels, output_hidden_states=True))
    prefix = torch.empty(1, config.hidden_size, dtype=dtype, device=device)
    ids = torch.zeros(1, STEPS, dtype=torch.int64, device=device)
    write = phase("decode", read, lambda: decoder.logits(prefix, ids))

    def phases(rows: int) -> list[Phase]:
        chunk = rows * ROWS_AT_ONCE * torch.float32.itemsize
        return [
            Phase(
                "encode",
                options.frames * encode.flops,
                seen,
                DinoTower.batch_size * encode.memory,
            ),
            Phase("memory", 4 * rows * MEMORY * config.hidden_size, memory, 2 * chunk),
            Phase("decode", rows * write.flops, STEPS * read, 0),
        ]

    return Footprint(
        name="Talk2DINO with a memory",
        parameters=parameters_of(tower, decoder),
        weights=seen + read + memory,
        row=int(write.memory),
        rows={"cuda": REGIONS, "cpu": REGIONS},
        row_name="regions",
        unit="captions",
        phases=phases,
        made=float,
        image_size=side,
        assumptions=(
            f"{REGIONS} regions share {options.frames} frames, and are compared with "
            f"a memory of {MEMORY:,} captions.",
        ),
    )
