"""Options and cards of SAM 2 and related models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard


@dataclass(frozen=True)
class Sam2Options(Options):
    """Options of the trackers that run by the streaming loop."""

    image_size: int | None = option(
        None,
        "Resize frames to a square of this side; smaller is faster and less exact. "
        "Empty for the model's own, 1024 for published weights.",
        unit="pixels",
        minimum=32,
        maximum=4096,
    )
    fill_hole_area: int = option(
        0,
        "Fill holes of masks up to this area, counted at the model's low resolution; "
        "SAM 2's own video predictor fills up to 8.",
        unit="pixels",
        minimum=0,
        maximum=1024,
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = option(
        None,
        "Compute in this number format; empty for bfloat16 on a GPU, else float32.",
        advanced=True,
    )
    compile: bool = option(
        False,
        "Compile the image encoder, which takes minutes once and then saves time on "
        "every frame.",
        advanced=True,
    )
    object_chunk: int | None = option(
        None,
        "Compute at most this many objects in one batch; empty for as many as fit, 16 "
        "at most. It becomes smaller by itself when the GPU's memory is full.",
        unit="objects",
        minimum=1,
        advanced=True,
        result=False,
    )
    max_conditioning_frames: int = option(
        32,
        "Look at no more than this many prompted frames of an object, the nearest "
        "ones; models may set a lower limit.",
        unit="frames",
        minimum=1,
        advanced=True,
    )
    forget_contradicted: bool = option(
        False,
        "Forget what is remembered of an object when a later prompt of it marks "
        "something else, as when a wrong box is corrected; SAM 2's own predictor keeps "
        "looking at both.",
        advanced=True,
    )
    revision: str | None = option(
        None,
        "Load this commit, tag or branch of the hub repository.",
        advanced=True,
    )


@dataclass(frozen=True)
class Sam2OfficialOptions(Options):
    """Options of facebook's own predictor."""

    config: str | None = option(
        None,
        "Use this configuration of the package; empty finds it by the file's name.",
    )


_SIZES = "fiftyone_regioncap.propagation.sam2.sizes"

SAM2 = ModelCard(
    name="sam2",
    summary="SAM 2 and 2.1, streaming, objects in one batch",
    model="fiftyone_regioncap.propagation.sam2.propagator:Sam2Propagator",
    weights="facebook/sam2.1-hiera-tiny",
    hub_file="model.safetensors",
    license="Apache-2.0",
    commercial=True,
    options=Sam2Options,
    footprint=f"{_SIZES}:footprint",
)

EDGETAM = replace(
    SAM2,
    name="edgetam",
    summary="EdgeTAM, SAM 2's small sibling, by the same loop",
    model="fiftyone_regioncap.propagation.sam2.propagator:EdgeTamPropagator",
    weights="yonigozlan/EdgeTAM-hf",
    footprint=f"{_SIZES}:edgetam_footprint",
)

SAM3_TRACKER = replace(
    SAM2,
    name="sam3-tracker",
    summary="the tracker of SAM 3, by the same loop",
    model="fiftyone_regioncap.propagation.sam2.propagator:Sam3TrackerPropagator",
    weights="facebook/sam3",
    license="SAM License (gated)",
    footprint=f"{_SIZES}:sam3_footprint",
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
    footprint="fiftyone_regioncap.propagation.sam2_official:footprint",
)
