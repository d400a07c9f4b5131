"""Options and card of Patch-ioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard

OVERRIDES = (
    "compat",
    "index",
    "crop",
    "resize_dim",
    "calculate_argmax_text",
    "memory",
    "backbone",
    "clip",
    "vocabulary",
    "gpt2_vocabulary",
)
"""Options that replace a value of the checkpoint's ``config.yaml`` when given."""


@dataclass(frozen=True)
class PatchionerOptions(Options):
    """Options of Patch-ioner."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None,
        "Number format of backbone and decoder; empty for bfloat16 on a GPU, else "
        "float32.",
        advanced=True,
    )
    weighting: Literal["mean", "gaussian", "attention"] = option(
        "mean",
        "How the patches under a mask are weighted.",
        choices={
            "mean": "all patches alike",
            "gaussian": "more towards the middle of the region",
            "attention": "by the attention of the backbone's image token",
        },
    )
    variance: float = option(
        1.0,
        "Variance of the Gaussian weighting, where -1 and 1 are the region's edges; 0 "
        "takes the middle patch alone.",
        minimum=0,
        advanced=True,
    )
    rule: Literal["coverage", "index"] = option(
        "coverage",
        "How a mask selects patches.",
        choices={
            "coverage": "by the fraction of each patch that the mask covers",
            "index": "every patch that the mask touches, all alike",
        },
        advanced=True,
    )
    frames: int = option(
        8, "Number of frames of a clip that are looked at.", unit="frames", minimum=1
    )
    cached_frames: int = option(
        32,
        "Number of frames whose features are kept between batches (4 MB each).",
        unit="frames",
        minimum=1,
        advanced=True,
        result=False,
    )
    embeddings: bool = option(True, "Store the embedding of each region.")
    compat: Literal["fixed", "reference"] | None = option(
        None,
        "Whose numbers to compute: the published code's, bugs included, or without "
        "them. Empty for the checkpoint's.",
        advanced=True,
    )
    index: bool | None = option(
        None,
        "Search the memory through a faiss index, which is built once; empty for the "
        "checkpoint's.",
        advanced=True,
    )
    crop: bool | None = option(
        None,
        "Look at the central square of a frame instead of squashing the whole frame; "
        "empty for the checkpoint's.",
        advanced=True,
    )
    resize_dim: int | None = option(
        None,
        "Side of the square that the backbone sees; empty for the checkpoint's.",
        unit="pixels",
        minimum=1,
        maximum=4096,
        advanced=True,
    )
    calculate_argmax_text: bool | None = option(
        None,
        "Answer with the memory's nearest caption instead of a generated one; empty "
        "for the checkpoint's.",
        advanced=True,
    )
    memory: str | None = option(
        None,
        "File of the memory; empty for the checkpoint's.",
        picker="file",
        advanced=True,
    )
    backbone: str | None = option(
        None,
        "Folder or hub repository of the image tower; empty for the checkpoint's.",
        picker="folder",
        advanced=True,
    )
    clip: str | None = option(
        None,
        "Folder or hub repository of the text tower; empty for the checkpoint's.",
        picker="folder",
        advanced=True,
    )
    vocabulary: str | None = option(
        None,
        "File, folder or hub repository of CLIP's vocabulary; empty for the "
        "checkpoint's.",
        picker="file",
        advanced=True,
    )
    gpt2_vocabulary: str | None = option(
        None,
        "Folder or hub repository of GPT-2's vocabulary, for ViECap; empty for the "
        "checkpoint's.",
        picker="folder",
        advanced=True,
    )

    @property
    def overrides(self) -> dict[str, Any]:
        """Returns the values that replace those of the checkpoint's ``config.yaml``."""
        given = {name: getattr(self, name) for name in OVERRIDES}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class PatchionerTrainingOptions(Options):
    """Options of training a decoder; the defaults are the paper's."""

    mitigation: Literal["memory", "noise", "off"] | None = option(
        None,
        "What closes the gap between texts and images; empty for a memory with DeCap's "
        "decoder and noise with ViECap's.",
        choices={
            "memory": "regions are projected onto the captions that were learned",
            "noise": "noise on the captions' embeddings in training",
            "off": "nothing, as in the paper's ablation",
        },
    )
    noise: float | None = option(
        None,
        "Standard deviation of the noise on each channel of an embedding; empty for "
        "0.08 with DeCap's decoder and 0.126 with ViECap's.",
        minimum=0,
        advanced=True,
    )
    fresh: bool | None = option(
        None,
        "Begin with random weights: DeCap's decoder, or ViECap's mapping network; "
        "empty for yes with DeCap's and no with ViECap's.",
    )
    trains: Literal["everything", "mapping"] = option(
        "everything",
        "What trains of ViECap's decoder.",
        choices={
            "everything": "the mapping network and the GPT-2",
            "mapping": "the mapping network alone",
        },
    )
    label_smoothing: float = option(
        0.1,
        "Label smoothing of DeCap's cross-entropy.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    tokens: int = option(
        20,
        "Tokens of a caption that DeCap learns, the start token included.",
        unit="tokens",
        minimum=1,
        maximum=77,
        advanced=True,
    )
    entity_dropout: float = option(
        0.4,
        "Chance of each entity to be left out of ViECap's hard prompt.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    entities: str | None = option(
        None,
        "Text file of entities that ViECap's hard prompt may name, one a line; empty "
        "for all nouns of the captions.",
        picker="file",
        advanced=True,
    )
    dropout: float = option(
        0.1, "Dropout in the GPT-2.", minimum=0, maximum=1, advanced=True
    )


PATCHIONER = ModelCard(
    name="patchioner",
    summary="Patch-ioner: every region of a frame from one backbone pass",
    model="fiftyone_regioncap.captioning.patchioner.captioner:PatchionerCaptioner",
    weights="Ruggero1912/Patch-ioner_talk2dino_decap_COCO_Captions",
    hub_file="config.yaml",
    license="not stated by its authors",
    commercial=False,
    options=PatchionerOptions,
    footprint="fiftyone_regioncap.captioning.patchioner.sizes:footprint",
    training="fiftyone_regioncap.captioning.patchioner.training:PatchionerTraining",
    training_options=PatchionerTrainingOptions,
    dense=True,
    text_encoder=(
        "fiftyone_regioncap.captioning.patchioner.text_encoder:PatchionerTexts"
    ),
)
