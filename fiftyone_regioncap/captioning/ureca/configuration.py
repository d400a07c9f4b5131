"""Options and card of URECA."""

from __future__ import annotations

from dataclasses import dataclass

from fiftyone_regioncap.captioning.configuration import GenerationOptions
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
