"""The options of what is found out about captions."""

from __future__ import annotations

from dataclasses import dataclass

from fiftyone_regioncap.core.options import Options, option

CAPTIONS = "Field of captions, or of regions with captions."


@dataclass(frozen=True)
class CheckOptions(Options):
    """Options of the checks of captions."""

    captions: str = option("captions", CAPTIONS, picker="captions")
    similarity: bool = option(
        False, "Also compare captions with how their regions look, where embedded."
    )
    model: str | None = option(
        None,
        "Folder or hub id of the captioner that embedded the regions; empty for where "
        "it was then.",
        advanced=True,
    )
    device: str | None = option(
        None, "Device of that model, such as cuda; empty for the best.", advanced=True
    )


@dataclass(frozen=True)
class TriageOptions(Options):
    """Options of sorting captions into those to keep, to review and to drop."""

    captions: str = option("captions", CAPTIONS, picker="captions")
    score: str = option(
        "confidence",
        "Attribute that is larger for better captions, such as image_text_similarity.",
        picker="score",
    )
    keep: float = option(0.8, "Captions with this score or more are kept.")
    drop: float = option(0.3, "Captions with less than this score are dropped.")


@dataclass(frozen=True)
class FacetOptions(Options):
    """Options of the extraction of facets."""

    captions: str = option("captions", CAPTIONS, picker="captions")


@dataclass(frozen=True)
class UniqueOptions(Options):
    """Options of making the captions of different objects distinct."""

    captions: str = option("captions", CAPTIONS, picker="captions")
    tracks: str | None = option(
        None,
        "Frame field of the tracks, for places and times; empty for the first field of "
        "tracks.",
        picker="tracks",
    )
    threshold: float = option(
        0.8,
        "Share of content words in common from which captions are alike.",
        minimum=0.01,
        maximum=1,
    )
    parts: bool = option(False, "Also write which masks are parts of which.")
