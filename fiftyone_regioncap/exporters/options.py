"""The options of exports and imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.jobs.options import MASK_STORAGE

STATES = ("unreviewed", "accepted", "edited", "rejected")


@dataclass(frozen=True)
class ExportOptions(Options):
    """What is exported, and where to."""

    path: str = option(
        help="Folder to make, on the machine that runs this.",
        picker="folder",
        flag="to",
    )
    tracks: str = option("frames.tracks", "Frame field of the tracks.", picker="tracks")
    captions: str | None = option(
        "captions", "Field of the captions; none exports masks only.", picker="captions"
    )
    reviews: tuple[str, ...] = option(
        ("unreviewed", "accepted", "edited"),
        f"States of review to export, out of {', '.join(STATES)}.",
        choices=dict.fromkeys(STATES, ""),
        flag="review",
    )
    min_confidence: float | None = option(
        None,
        "Leave out captions of lower or unknown confidence.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    min_words: int = option(
        1, "Leave out captions with fewer words.", minimum=1, advanced=True
    )
    max_words: int | None = option(
        None, "Leave out captions with more words.", minimum=1, advanced=True
    )
    min_frames: int = option(
        1, "Leave out tracks visible on fewer frames.", minimum=1, advanced=True
    )
    uncaptioned: bool = option(
        False, "Keep tracks without a caption, in formats with a place for them."
    )
    media: Literal["copy", "link", "none"] = option(
        "copy",
        "What happens to videos and images.",
        choices={"copy": "copy", "link": "link to where they are", "none": "leave out"},
    )
    cut: bool = option(
        False, "Cut out the frames of each caption as a clip.", flag="clips"
    )
    val: float = option(
        0.0,
        "Share of the videos that goes to val/, the others to train/; 0 for no splits.",
        minimum=0,
        maximum=1,
    )
    seed: int = option(0, "Seed of the split.", minimum=0, advanced=True)
    overwrite: bool = option(False, "Replace an earlier export in the folder.")
    workers: int = option(1, "Number of processes to use.", minimum=1, advanced=True)


@dataclass(frozen=True)
class ImportOptions(Options):
    """What is imported, and into which fields."""

    path: str = option(
        help="Exported folder, or its main file, on the machine that runs this.",
        picker="folder",
        flag="from",
    )
    tracks: str = option(
        "frames.tracks", "Frame field that tracks are written to.", picker="output"
    )
    captions: str = option(
        "captions", "Field that captions are written to.", picker="output"
    )
    mask_storage: Literal["auto", "inline", "disk"] = option(
        "auto",
        "Where masks are stored.",
        choices=MASK_STORAGE,
        flag="masks",
        advanced=True,
    )
    output_dir: str | None = option(
        None,
        "Folder for masks on disk; empty for beside the media.",
        picker="folder",
        advanced=True,
    )
    overwrite: bool = option(False, "Replace captions that were reviewed, too.")
