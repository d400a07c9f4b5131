"""Options and card of URECA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard


@dataclass(frozen=True)
class UrecaOptions(Options):
    """Options of URECA."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None, "Number format; empty for bfloat16 on a GPU, else float32.", advanced=True
    )
    max_tiles: int = option(
        12, "Greatest number of tiles that an image is cut into.", minimum=1
    )
    dynamic_mask: bool | None = option(
        None, "Tile masks too; empty for what the checkpoint was trained with."
    )
    max_new_tokens: int = option(
        256, "Greatest length of a caption.", unit="tokens", minimum=1
    )
    temperature: float = option(
        0.0, "Randomness of sampling; 0 takes the most likely words.", minimum=0
    )
    top_p: float = option(
        1.0, "Share of probability that words are drawn from.", minimum=0, maximum=1
    )
    top_k: int = option(50, "Number of words that are drawn from.", minimum=0)
    seed: int = option(0, "Seed of sampling.", minimum=0, advanced=True)
    frames: int = option(4, "Number of frames of a clip that are looked at.", minimum=1)
    regions_at_once: int | None = option(
        None,
        "Captions written at once; empty for what suits the device.",
        minimum=1,
        advanced=True,
    )


URECA = ModelCard(
    name="ureca",
    summary="URECA: captions that fit no other region",
    model="fiftyone_regioncap.captioning.ureca.captioner:UrecaCaptioner",
    needs="a folder as docs/ureca.md describes it",
    license="not stated by its authors",
    commercial=False,
    options=UrecaOptions,
)
