"""Registry of the captioners."""

from __future__ import annotations

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.models.registry import ModelRegistry

_HERE = "fiftyone_regioncap.captioning"

CAPTIONERS: ModelRegistry[Captioner] = ModelRegistry(
    kind="captioner",
    entries={
        "measured": f"{_HERE}.configuration:MEASURED",
        "dam-video": f"{_HERE}.dam.configuration:DAM_VIDEO",
        "dam": f"{_HERE}.dam.configuration:DAM",
        "openai": f"{_HERE}.configuration:OPENAI",
        "patchioner": f"{_HERE}.patchioner.configuration:PATCHIONER",
        "dynrefer": f"{_HERE}.dynrefer.configuration:DYNREFER",
        "ureca": f"{_HERE}.ureca.configuration:URECA",
    },
    group="fiftyone_regioncap.captioners",
    preferred=("dam-video", "measured"),
)
