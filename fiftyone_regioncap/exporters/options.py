"""The options of exports and imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.jobs.options import MASK_STORAGE

Mode: TypeAlias = Literal["copy", "link", "none"]

STATES = ("unreviewed", "accepted", "edited", "rejected")


@dataclass(frozen=True)
class ExportOptions(Options):
    """Options of an export: its labels, media, splits and folder."""

    format: Any = option(
        help="Name of the format, or a format of your own.", picker="format"
    )
    path: str = option(
        help="Folder to make, on the machine that runs this.",
        picker="folder",
        flag="to",
    )
    options: Mapping[str, Any] | None = option(
        None, "Options of the format by name.", flag="option"
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
    media: Mode = option(
        "copy",
        "What happens to videos and images. Clips that are cut, and frames, are "
        "written or left out.",
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
    overwrite: bool = option(
        False,
        "Replace an earlier export in the folder: only files that its manifest names, "
        "and never media of the dataset.",
    )
    workers: int = option(1, "Number of processes to use.", minimum=1, advanced=True)

    def takes(self, record: CaptionRecord) -> bool:
        """Returns whether a caption is exported; those with an error never are."""
        words = len(record.caption.split())
        return (
            record.error is None
            and record.review in self.reviews
            and self.min_words <= words
            and (self.max_words is None or words <= self.max_words)
            and (
                self.min_confidence is None
                or (
                    record.confidence is not None
                    and record.confidence >= self.min_confidence
                )
            )
        )

    @property
    def takes_all_tracks(self) -> bool:
        """Whether tracks without captions are exported too."""
        return self.uncaptioned or self.captions is None

    def split(self, path: str) -> str | None:
        """Returns a video's split, ``"train"`` or ``"val"``; None when there is one.

        It depends on the names of the file and its folder only, so that it is the same
        in every export, and clips of one video stay together.
        """
        if self.val <= 0:
            return None
        name = "/".join(Path(path).parts[-2:])
        digest = sha256(f"{self.seed}/{name}".encode()).digest()
        return (
            "val" if int.from_bytes(digest[:8], "big") < self.val * 2**64 else "train"
        )


@dataclass(frozen=True)
class ImportOptions(Options):
    """Options of an import: its files, and the fields that it writes."""

    format: Any = option(
        help="Name of the format, or a format of your own.", picker="format to read"
    )
    path: str = option(
        help="Exported folder, or its main file, on the machine that runs this.",
        picker="folder",
        flag="from",
    )
    tracks: str = option(
        "frames.tracks", "Frame field that tracks are written to.", picker="new tracks"
    )
    captions: str = option(
        "captions", "Field that captions are written to.", picker="new captions"
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
