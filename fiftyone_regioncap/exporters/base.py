"""Defines what a format of exports provides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import Merge, Part


@dataclass(frozen=True)
class Format(Options):
    """A format that tracks and captions are written in; its fields are its options.

    Attributes:
        summary: One line on the format.
    """

    summary: ClassVar[str] = ""

    @abstractmethod
    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes one video: its own files, and its share of those of all videos.

        It is called in any order and perhaps in several processes, so it keeps no
        state. A video for which it raises an error is left out.

        Args:
            video: The video with its tracks and captions.
            part: Part of the export that takes its files and items.
            media: Writes videos, clips and frames, if the user wants them.
        """

    def finish(self, merge: Merge) -> None:
        """Puts the files together that all videos share.

        Args:
            merge: The items of all videos, and where the files go.
        """


@dataclass(frozen=True)
class ImportableFormat(Format):
    """A format that can be read back."""

    @classmethod
    @abstractmethod
    def read(cls, path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
        """Reads videos one by one.

        Args:
            path: The exported folder, or its main file.

        Raises:
            ExportError: When there is nothing of this format.
        """
