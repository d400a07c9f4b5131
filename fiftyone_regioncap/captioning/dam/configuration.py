"""Options and cards of DAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.captioning.configuration import GenerationOptions, LoraOptions
from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.models.registry import ModelCard


@dataclass(frozen=True)
class DamOptions(GenerationOptions):
    """Options of DAM, on single images and on video."""

    top_p: float = option(
        0.5, "Share of probability that words are drawn from.", minimum=1e-6, maximum=1
    )
    quantization: Literal["8bit", "4bit"] | None = option(
        None, "Precision of the language model's weights.", advanced=True
    )
    focal: float = option(
        3.0,
        "Size of the crop view in sizes of the object; the published models were "
        "trained with 3.",
        minimum=1,
        advanced=True,
    )
    samples: int = option(
        1,
        "Captions drawn per region, at a temperature above 0; the most typical one is "
        "kept, and their agreement with it.",
        minimum=1,
    )
    rows: int | None = option(
        None,
        "Captions written at once; empty for as many as fit.",
        minimum=1,
        advanced=True,
        result=False,
    )
    workers: int | None = option(
        None,
        "Threads that prepare clips; empty for what suits the machine.",
        minimum=1,
        advanced=True,
        result=False,
    )

    def __post_init__(self) -> None:
        """Validates each option, and that several samples can differ."""
        super().__post_init__()
        if self.samples > 1 and self.temperature == 0:
            raise OptionError(
                f"samples={self.samples} at temperature=0 are all the same; give a "
                "temperature such as 0.2"
            )


@dataclass(frozen=True)
class DamTrainingOptions(LoraOptions):
    """Options of training DAM, whose authors published no training."""

    stage: Literal["adapters", "lora", "both", "everything"] = option(
        "both",
        "What trains.",
        choices={
            "adapters": "the adapters between the views, the mask's embedding and the "
            "projector",
            "lora": "LoRA on the language model",
            "both": "the adapters' part and LoRA",
            "everything": "all weights that captions depend on",
        },
    )
    fresh_context: bool = option(
        False,
        "Begin with new adapters: random, behind gates of zero, and a mask embedding "
        "of zero, so that the model starts as it was without them.",
        advanced=True,
    )
    prompts: tuple[str, ...] = option(
        ("detailed",),
        "Names of prompts, or texts, of which each sample gets one at random.",
    )
    image_share: float = option(
        0.0,
        "Share of tracks that the video model is shown as a single image.",
        minimum=0,
        maximum=1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Validates each option, and that there is a prompt."""
        super().__post_init__()
        if not self.prompts:
            raise OptionError("prompts is empty; give names such as detailed, or texts")


_SIZES = "fiftyone_regioncap.captioning.dam.sizes"
_TRAINING = "fiftyone_regioncap.captioning.dam.training"

DAM = ModelCard(
    name="dam",
    summary="Describe Anything on a single image",
    model="fiftyone_regioncap.captioning.dam.captioner:DamCaptioner",
    weights="nvidia/DAM-3B",
    hub_file="config.json",
    license="NVIDIA non-commercial",
    commercial=False,
    options=DamOptions,
    footprint=f"{_SIZES}:footprint",
    training=f"{_TRAINING}:DamTraining",
    training_options=DamTrainingOptions,
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
    footprint=f"{_SIZES}:video_footprint",
    training=f"{_TRAINING}:DamVideoTraining",
    training_options=DamTrainingOptions,
)
