"""Options and card of MobileSAM."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard
from fiftyone_regioncap.propagation.mobilesam.settings import (
    PRESETS,
    Preset,
    Settings,
)

WEIGHTS = "mobile_sam.pt"


@dataclass(frozen=True)
class MobileSamOptions(Options):
    """Options of MobileSAM, the default propagator."""

    preset: Preset = option(
        "balanced",
        "How much time to take for how good masks.",
        choices={
            "fast": "Encodes at 448 pixels, small objects at up to 768: at most "
            "half of the time, J 0.86 on the report set.",
            "balanced": "Encodes at 768 pixels, small objects at up to 896: J 0.895 on "
            "the report set.",
            "best": "Encodes at 1024 pixels: twice the time, J 0.90 on the report set.",
        },
    )
    side: int | None = option(
        None,
        "Longest side that whole frames are encoded at, a multiple of 16; empty for "
        "the preset's.",
        unit="pixels",
        minimum=64,
        maximum=2048,
        advanced=True,
    )
    reduced_precision: bool | None = option(
        None,
        "Encode in bfloat16; empty where the processor has instructions for it.",
        advanced=True,
    )

    def settings(self) -> Settings:
        """Returns the settings that the options select."""
        settings = PRESETS[self.preset]
        if self.side is not None:
            finest = round(settings.finest * self.side / settings.side)
            settings = replace(settings, side=self.side, finest=finest)
        if self.reduced_precision is not None:
            settings = replace(settings, reduced_precision=self.reduced_precision)
        return settings


MOBILE_SAM = ModelCard(
    name="mobilesam",
    summary="MobileSAM and label propagation; runs on a laptop's CPU",
    model="fiftyone_regioncap.propagation.mobilesam.propagator:MobileSamPropagator",
    weights=WEIGHTS,
    license="Apache-2.0",
    commercial=True,
    options=MobileSamOptions,
    footprint="fiftyone_regioncap.propagation.mobilesam.sizes:footprint",
)
