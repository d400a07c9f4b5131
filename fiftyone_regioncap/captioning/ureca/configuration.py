"""Options and card of URECA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.captioning.configuration import GenerationOptions, LoraOptions
from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.models.registry import ModelCard


@dataclass(frozen=True)
class UrecaOptions(GenerationOptions):
    """Options of URECA."""

    max_new_tokens: int = option(
        256, "Greatest length of a caption.", unit="tokens", minimum=1
    )
    max_tiles: int = option(
        12,
        "Greatest number of tiles that an image is cut into, the thumbnail not "
        "counted; the weights were trained with up to 6.",
        minimum=1,
    )
    dynamic_mask: bool | None = option(
        None, "Tile masks too; empty for what the checkpoint was trained with."
    )
    frames: int = option(
        4,
        "Number of frames of a clip that the one to describe is chosen from.",
        minimum=1,
    )
    regions_at_once: int | None = option(
        None,
        "Captions written at once; empty for what suits the device.",
        minimum=1,
        advanced=True,
        result=False,
    )


@dataclass(frozen=True)
class UrecaTrainingOptions(LoraOptions):
    """Options of training URECA; the defaults are the authors' for 8B models."""

    rank: int = option(
        128, "Rank of the LoRA matrices on the language model.", minimum=1
    )
    stage: Literal["masks", "lora"] = option(
        "lora",
        "What trains; the authors train one after the other.",
        choices={
            "masks": "stage 1: the mask encoder and its projection",
            "lora": "stage 2: LoRA on the language model",
        },
    )
    mask_tokens: int | None = option(
        None,
        "Begin with a new mask encoder of this many tokens a tile; empty for the "
        "checkpoint's own.",
        minimum=1,
        advanced=True,
    )
    prompts: tuple[str, ...] = option(
        ("detailed",),
        "Names of prompts, or texts, of which each sample gets one at random.",
    )
    max_tiles: int = option(
        6,
        "Greatest number of tiles that an image is cut into, the thumbnail not "
        "counted.",
        minimum=1,
    )
    jpeg: bool = option(
        False, "Encode each tile as JPEG of a random quality from 75 to 100."
    )
    compat: Literal["fixed", "reference"] = option(
        "fixed",
        "Whether to leave tokens with id 0, such as Qwen2's exclamation mark, out of "
        "attention, as the authors' code does (reference).",
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Validates each option, and that there is a prompt.

        Raises:
            OptionError: When one doesn't fit.
        """
        super().__post_init__()
        if not self.prompts:
            raise OptionError("prompts is empty; give names such as detailed, or texts")
        if self.mask_tokens is not None and self.stage != "masks":
            raise OptionError(
                f"mask_tokens={self.mask_tokens}: a new mask encoder is of no use "
                "untrained; give stage='masks' as well"
            )


URECA = ModelCard(
    name="ureca",
    summary="URECA: captions that fit no other region",
    model="fiftyone_regioncap.captioning.ureca.captioner:UrecaCaptioner",
    needs="a folder as docs/ureca.md describes it",
    license="not stated by its authors",
    commercial=False,
    options=UrecaOptions,
    footprint="fiftyone_regioncap.captioning.ureca.sizes:footprint",
    training="fiftyone_regioncap.captioning.ureca.training:UrecaTraining",
    training_options=UrecaTrainingOptions,
)
