"""Options and card of Patch-ioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard


@dataclass(frozen=True)
class PatchionerOptions(Options):
    """Options of Patch-ioner; what a checkpoint is made of is in its config.yaml."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None, "Number format; empty for bfloat16 on a GPU, else float32.", advanced=True
    )
    compat: str | None = option(
        None, "Replaces compat of the checkpoint's config.yaml.", advanced=True
    )
    index: bool | None = option(
        None, "Search the memory through a faiss index.", advanced=True
    )
    weighting: Literal["mean", "gaussian", "attention"] = option(
        "mean", "How the patches under a mask are weighted."
    )
    variance: float = option(
        1.0, "Variance of the Gaussian weighting.", minimum=0, advanced=True
    )
    rule: Literal["coverage", "index"] = option(
        "coverage", "How a mask selects patches.", advanced=True
    )
    frames: int = option(8, "Number of frames of a clip that are looked at.", minimum=1)
    cached_frames: int = option(
        32, "Number of frames whose features are kept.", minimum=1, advanced=True
    )
    embeddings: bool = option(True, "Store the embedding of each region.")


PATCHIONER = ModelCard(
    name="patchioner",
    summary="Patch-ioner: every region of a frame from one backbone pass",
    model="fiftyone_regioncap.captioning.patchioner.captioner:PatchionerCaptioner",
    weights="Ruggero1912/Patch-ioner_talk2dino_decap_COCO_Captions",
    hub_file="config.yaml",
    license="not stated by its authors",
    commercial=False,
    options=PatchionerOptions,
    text_encoder=(
        "fiftyone_regioncap.captioning.patchioner.text_encoder:PatchionerTexts"
    ),
)
