"""Ordered images as videos: those of a folder, or those that a list names."""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.video.images import IMAGE_SUFFIXES, load_image
from fiftyone_regioncap.video.sources import VideoMetadata

LIST_SUFFIX = ".frames"
"""Suffix of a text file that lists images, the frames of a video in their order."""


class ImageSource:
    """Ordered images as the frames of a video.

    Args:
        path: Path of a folder, whose images are the frames in natural order of their
            names; or of a list that :func:`write_list` made.
        fps: Frames per second, which images do not state.

    Raises:
        VideoError: If there are no images, or the first cannot be read.
        ValueError: If ``fps`` is not positive.
    """

    def __init__(self, path: str, fps: float) -> None:
        if not fps > 0:
            raise ValueError(f"fps is {fps}; give a positive number")
        self._path = path
        self._files = images_in(path) if os.path.isdir(path) else _read_list(path)
        if not self._files:
            raise VideoError(path, "the folder holds no images")
        self._shape = self._load(0).shape
        self.metadata = VideoMetadata(
            size_bytes=sum(
                file.stat().st_size for file in self._files if file.exists()
            ),
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


def images_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the images directly inside a folder, in natural order of their names."""
    return sorted(
        (
            file
            for file in Path(folder).iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ),
        key=_natural,
    )


def is_image_source(path: str) -> bool:
    """Returns whether a path is a folder, or a list of images."""
    return path.endswith(LIST_SUFFIX) or os.path.isdir(path)


def write_list(path: Path, files: Sequence[str]) -> None:
    """Writes a list of images, with sizes and times that tell when one was replaced.

    Args:
        path: Path of the list, which ends with :data:`LIST_SUFFIX`.
        files: Absolute paths of the images in their order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for file in files:
        state = os.stat(file) if os.path.exists(file) else None
        facts = f"{state.st_size} {state.st_mtime_ns}" if state else "missing"
        # A path may hold any character but the one that stands for its line breaks.
        lines.append(f"{facts}\t{file}".replace("\n", "\0") + "\n")
    path.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))


def _read_list(path: str) -> list[Path]:
    try:
        text = Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise VideoError(path, f"the list of images can't be read: {error}") from None
    paths = [line.partition("\t")[2] for line in text.split("\n") if line]
    return [Path(path.replace("\0", "\n")) for path in paths]


def _natural(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Returns a sort key that compares digits as numbers ("9.jpg" before "10.jpg")."""
    parts = re.findall(r"\d+|\D+", file.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], (
        file.name
    )
