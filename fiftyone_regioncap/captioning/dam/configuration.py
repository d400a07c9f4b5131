"""Options and cards of DAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard


@dataclass(frozen=True)
class DamOptions(Options):
    """Options of DAM, on single images and on video."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None, "Number format; empty for bfloat16 on a GPU, else float32.", advanced=True
    )
    quantization: Literal["8bit", "4bit"] | None = option(
        None, "Precision of the language model's weights.", advanced=True
    )
    max_new_tokens: int = option(
        512, "Greatest length of a caption.", unit="tokens", minimum=1
    )
    temperature: float = option(
        0.0, "Randomness of sampling; 0 takes the most likely words.", minimum=0
    )
    top_p: float = option(
        0.5, "Share of probability that words are drawn from.", minimum=0, maximum=1
    )
    top_k: int = option(50, "Number of words that are drawn from.", minimum=0)
    seed: int = option(0, "Seed of sampling.", minimum=0, advanced=True)
    samples: int = option(
        1, "Captions drawn per region; their agreement is the confidence.", minimum=1
    )
    rows: int | None = option(
        None,
        "Captions written at once; empty for as many as fit.",
        minimum=1,
        advanced=True,
    )
    workers: int | None = option(
        None,
        "Threads that prepare clips; empty for what suits the machine.",
        minimum=1,
        advanced=True,
    )


DAM = ModelCard(
    name="dam",
    summary="Describe Anything on a single image",
    model="fiftyone_regioncap.captioning.dam.captioner:DamCaptioner",
    weights="nvidia/DAM-3B",
    hub_file="config.json",
    license="NVIDIA non-commercial",
    commercial=False,
    options=DamOptions,
)

DAM_VIDEO = ModelCard(
    name="dam-video",
    summary="Describe Anything over 8 frames of a track",
    model="fiftyone_regioncap.captioning.dam.captioner:DamVideoCaptioner",
    weights="nvidia/DAM-3B-Video",
    hub_file="config.json",
    license="NVIDIA non-commercial",
    commercial=False,
    options=DamOptions,
)
