"""Puts videos, clips of videos and frames into an export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import av
import cv2

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError
from fiftyone_regioncap.video.reader import VideoReader

Mode: TypeAlias = Literal["copy", "link", "none"]
"""Whether media are copied, linked to where they are, or left out. Clips that are cut,
and frames, can only be written or left out."""

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Media:
    """Puts the media of videos into an export.

    Attributes:
        mode: how.
    """

    mode: Mode = "copy"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ExportError(
                f"media can't be {self.mode!r}; choose one of "
                + ", ".join(get_args(Mode))
            )

    def video(self, video: VideoRecord, folder: Path, where: str = "videos") -> str:
        """Puts a video, or its clip, into an export.

        Args:
            video: whose media.
            folder: of the export.
            where: its folder for videos.

        Returns:
            the file's path in the export, with ``/``; where media are left out, the
            path that it would have.

        Raises:
            VideoError: when there is no media, or a clip can't be decoded.
            OSError: when it can't be written.
        """
        suffix = ".mp4" if video.job.cut else video.path.suffix
        relative = f"{where}/{video.name}{suffix}" if where else video.name + suffix
        if self.mode == "none":
            return relative
        if not video.path.exists():
            raise VideoError(
                str(video.path), "there is no such file; restore it, or export no media"
            )
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if video.job.cut:
            cut(video, (0, video.frame_count - 1), path)
        elif self.mode == "link":
            path.unlink(missing_ok=True)
            path.symlink_to(video.path.resolve())
        elif video.path.is_dir():
            shutil.copytree(video.path, path, dirs_exist_ok=True)
        else:
            shutil.copyfile(video.path, path)
        return relative

    def clip(
        self, video: VideoRecord, support: tuple[int, int], folder: Path, relative: str
    ) -> None:
        """Writes a part of a video as a video of its own.

        Args:
            video: whose.
            support: (first, last) 0-based frames, inclusive.
            folder: of the export.
            relative: the file's path in it.

        Raises:
            VideoError: when it can't be decoded.
            OSError: when it can't be written.
        """
        if self.mode != "none":
            cut(video, support, folder / relative)

    def frames(
        self, video: VideoRecord, folder: Path, paths: Iterable[tuple[int, str]]
    ) -> None:
        """Writes frames as JPEG.

        Args:
            video: whose frames.
            folder: of the export.
            paths: 0-based frames, and where they go in the export.

        Raises:
            VideoError: when a frame can't be decoded.
            OSError: when one can't be written.
        """
        if self.mode == "none":
            return
        wanted = dict(paths)
        for index, frame in pictures(video, wanted):
            path = folder / wanted[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(frame))


def pictures(video: VideoRecord, frames: Iterable[int]) -> Iterator[tuple[int, Frame]]:
    """Decodes frames of a video, in ascending order.

    Raises:
        VideoError: when one can't be decoded.
    """
    start = video.start
    with VideoReader(video.path) as reader:
        for index, frame in reader.read(frame + start for frame in frames):
            yield index - start, frame


def jpeg(frame: Frame) -> bytes:
    """An RGB frame, uint8 (H, W, 3), as a JPEG file."""
    _, data = cv2.imencode(
        ".jpg",
        cv2.cvtColor(frame, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
    )
    return data.tobytes()


def cut(video: VideoRecord, support: tuple[int, int], path: Path) -> None:
    """Writes a part of a video as a video of its own, frame for frame.

    It is encoded anew: copying packets could only begin at a key frame, and the frame
    numbers of the export would be wrong.

    Args:
        video: whose.
        support: (first, last) 0-based frames, inclusive.
        path: of the MP4 file.

    Raises:
        VideoError: when a frame can't be decoded.
        OSError: when it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(video.fps or 30.0).limit_denominator(1001 * 60)
    with av.open(os.fspath(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = video.width, video.height
        # Half the resolution for color, as players expect, takes even sizes.
        even = video.width % 2 == 0 and video.height % 2 == 0
        stream.pix_fmt = "yuv420p" if even else "yuv444p"
        stream.options = {"crf": "18"}
        for _, frame in pictures(video, range(support[0], support[1] + 1)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
