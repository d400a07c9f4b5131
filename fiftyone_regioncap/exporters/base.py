"""What a format is, and what comes back out of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import Merge, Part


class Format(Protocol):
    """A way to write tracks and captions; a frozen dataclass of its options."""

    @property
    def name(self) -> str:
        """As it is asked for."""

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes one video: its own files, and its share of those of all videos.

        Called in any order and perhaps in several processes, so it keeps no state.

        Raises:
            RegionCapError, OSError: what is wrong with the video; it is left out.
        """

    def finish(self, merge: Merge) -> None:
        """Puts the files together that all videos share."""


@dataclass(frozen=True)
class ImportedVideo:
    """One video as a format has it, checked in itself. Frames count from 0.

    Attributes:
        name: of the video in the export, or of its file, with or without suffix.
        masks: by frame and object id.
        labels: what the objects are, by object id, where that is known.
        captions: of its objects.
        size: (height, width) in pixels; None where the format doesn't say.
        frame_count: None where the format doesn't say.
        scores: by frame and object id, in [0, 1]; 1 where the format has none.
    """

    name: str
    masks: Mapping[int, Mapping[int, RLE]]
    labels: Mapping[int, str]
    captions: Sequence[CaptionRecord]
    size: tuple[int, int] | None = None
    frame_count: int | None = None
    scores: Mapping[tuple[int, int], float] | None = None


@dataclass(frozen=True)
class BrokenVideo:
    """One video that can't be read out of a file.

    Attributes:
        name: of the video, as far as it is known.
        error: what is wrong.
    """

    name: str
    error: str


class Importer(Protocol):
    """Reads a format back."""

    def __call__(self, path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
        """Reads video by video.

        Args:
            path: of the exported folder, or of its main file.

        Raises:
            ExportError: when there is nothing of this format.
        """
