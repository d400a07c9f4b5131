"""Folders of images as videos."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator
from pathlib import Path

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.video.images import IMAGE_SUFFIXES, load_image
from fiftyone_regioncap.video.sources import VideoMetadata


class ImageFolderSource:
    """The images of a folder, in natural order of their names.

    Args:
        path: Path of the folder.
        fps: Frames per second, which images do not state.

    Raises:
        VideoError: If the folder holds no images, or the first cannot be read.
        ValueError: If ``fps`` is not positive.
    """

    def __init__(self, path: str, fps: float) -> None:
        if not fps > 0:
            raise ValueError(f"fps is {fps}; give a positive number")
        self._path = path
        self._files = sorted(
            (
                file
                for file in Path(path).iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not file.name.startswith(".")
            ),
            key=_natural,
        )
        if not self._files:
            raise VideoError(path, "the folder holds no images")
        self._shape = self._load(0).shape
        self.metadata = VideoMetadata(
            size_bytes=sum(file.stat().st_size for file in self._files),
            mime_type=mimetypes.guess_type(self._files[0])[0],
            frame_width=self._shape[1],
            frame_height=self._shape[0],
            frame_rate=float(fps),
            total_frame_count=len(self._files),
            duration=len(self._files) / fps,
            encoding_str=self._files[0].suffix.lower().lstrip("."),
        )

    def _load(self, index: int) -> Frame:
        file = self._files[index]
        try:
            return load_image(file)
        except (OSError, SyntaxError, ValueError) as error:
            raise VideoError(
                self._path,
                f"{file.name} is not a readable image: {error}",
                index - 1 if index else None,
            ) from None

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Frame]]:
        """See :meth:`FrameSource.decode`; all images must have one size."""
        for index in range(first, last + 1):
            frame = self._load(index)
            if frame.shape != self._shape:
                raise VideoError(
                    self._path,
                    f"{self._files[index].name} is {frame.shape[1]}x{frame.shape[0]}, "
                    f"the first image {self._shape[1]}x{self._shape[0]}; "
                    "make all images one size",
                    index - 1,
                )
            yield index, frame

    def close(self) -> None:
        """Does nothing: no file is open between two frames."""


def _natural(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Returns a sort key that compares digits as numbers ("9.jpg" before "10.jpg")."""
    parts = re.findall(r"\d+|\D+", file.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], (
        file.name
    )
