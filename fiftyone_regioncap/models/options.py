"""Options of loading models, the same for all models of an operation."""

from __future__ import annotations

from dataclasses import dataclass

from fiftyone_regioncap.core.options import Options, option


@dataclass(frozen=True)
class LoadOptions(Options):
    """Options of loading models."""

    weights: str | None = option(
        None,
        "Folder, file or hub id of the weights, for the one model that needs them.",
        picker="file",
    )
    device: str | None = option(
        None, "Device such as cuda or cpu; empty for the best there is.", advanced=True
    )
    accept_license: bool = option(
        False, "Accept the license of the weights; `regioncap models` names it."
    )
