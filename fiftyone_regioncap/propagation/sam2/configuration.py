"""Options and cards of SAM 2 and its kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard


@dataclass(frozen=True)
class Sam2Options(Options):
    """Options of the trackers that run by the streaming loop."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None, "Number format; empty for bfloat16 on a GPU, else float32.", advanced=True
    )
    image_size: int | None = option(
        None,
        "Side of the square that frames are resized to; empty for the model's own. "
        "Smaller is faster and less exact.",
        unit="pixels",
        minimum=64,
    )
    compile: bool = option(
        False, "Compile the image encoder by torch.compile.", advanced=True
    )
    revision: str | None = option(
        None, "Commit, tag or branch of the hub repository.", advanced=True
    )
    object_chunk: int = option(
        16, "Number of objects computed in one batch.", minimum=1, advanced=True
    )
    max_conditioning_frames: int = option(
        32, "Number of prompted frames that are remembered.", minimum=1, advanced=True
    )
    fill_hole_area: int = option(
        0, "Holes of masks up to this area are filled.", unit="pixels", minimum=0
    )


@dataclass(frozen=True)
class Sam2OfficialOptions(Options):
    """Options of facebook's own predictor."""

    config: str | None = option(
        None, "The package's configuration; empty finds it by the file's name."
    )


SAM2 = ModelCard(
    name="sam2",
    summary="SAM 2 and 2.1, streaming, objects in one batch",
    model="fiftyone_regioncap.propagation.sam2.propagator:Sam2Propagator",
    weights="facebook/sam2.1-hiera-tiny",
    hub_file="model.safetensors",
    license="Apache-2.0",
    commercial=True,
    options=Sam2Options,
)

EDGETAM = ModelCard(
    name="edgetam",
    summary="EdgeTAM, SAM 2's small sibling, by the same loop",
    model="fiftyone_regioncap.propagation.sam2.propagator:EdgeTamPropagator",
    weights="yonigozlan/EdgeTAM-hf",
    hub_file="model.safetensors",
    license="Apache-2.0",
    commercial=True,
    options=Sam2Options,
)

SAM3_TRACKER = ModelCard(
    name="sam3-tracker",
    summary="the tracker of SAM 3, by the same loop",
    model="fiftyone_regioncap.propagation.sam2.propagator:Sam3TrackerPropagator",
    weights="facebook/sam3",
    hub_file="model.safetensors",
    license="SAM License (gated)",
    commercial=True,
    options=Sam2Options,
)

SAM2_OFFICIAL = ModelCard(
    name="sam2-official",
    summary="facebook's own sam2 package, frames given lazily",
    model="fiftyone_regioncap.propagation.sam2_official:Sam2OfficialPropagator",
    needs="a checkpoint file of sam2",
    modules={"sam2": "sam2"},
    license="Apache-2.0",
    commercial=True,
    options=Sam2OfficialOptions,
)
