"""Registry of the propagators."""

from __future__ import annotations

from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.propagation.base import Propagator

_HERE = "fiftyone_regioncap.propagation"

PROPAGATORS: ModelRegistry[Propagator] = ModelRegistry(
    kind="propagator",
    entries={
        "sam2": f"{_HERE}.sam2.configuration:SAM2",
        "edgetam": f"{_HERE}.sam2.configuration:EDGETAM",
        "sam3-tracker": f"{_HERE}.sam2.configuration:SAM3_TRACKER",
        "sam2-official": f"{_HERE}.sam2.configuration:SAM2_OFFICIAL",
        "mobilesam": f"{_HERE}.mobilesam.configuration:MOBILE_SAM",
        "flow": f"{_HERE}.flow:FLOW",
    },
    group="fiftyone_regioncap.propagators",
    preferred=("sam2", "mobilesam", "flow"),
)
