"""Options and card of MobileSAM."""

from __future__ import annotations

from dataclasses import dataclass

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard

WEIGHTS = "mobile_sam.pt"


@dataclass(frozen=True)
class MobileSamOptions(Options):
    """Options of the embedded default."""

    side: int = option(
        768,
        "Longest side of the image that is encoded, a multiple of 16; 1024 is what "
        "MobileSAM was trained at, 768 takes half the time.",
        unit="pixels",
        minimum=64,
        maximum=2048,
    )
    reduced_precision: bool | None = option(
        None,
        "Encode in bfloat16; empty where the processor has instructions for it.",
        advanced=True,
    )


MOBILE_SAM = ModelCard(
    name="mobilesam",
    summary="MobileSAM and label propagation; runs on a laptop's CPU",
    model="fiftyone_regioncap.propagation.mobilesam.propagator:MobileSamPropagator",
    weights=WEIGHTS,
    license="Apache-2.0",
    commercial=True,
    options=MobileSamOptions,
)
