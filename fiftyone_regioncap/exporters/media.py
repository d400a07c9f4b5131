"""Puts videos, clips of videos and frames into an export."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.exporters.options import Mode
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.video.encoding import encode_video
from fiftyone_regioncap.video.reader import VideoReader

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Media:
    """Puts the media of videos into an export.

    Attributes:
        mode: Whether media are copied, linked or left out.
    """

    mode: Mode = "copy"

    def video(self, video: VideoRecord, folder: Path, where: str = "videos") -> str:
        """Puts a video, or its clip, into an export.

        Args:
            video: The video.
            folder: Folder of the export.
            where: Folder for videos within it; empty for the export's own.

        Returns:
            The file's path in the export, with ``/``; where media are left out, the
            path that it would have.

        Raises:
            VideoError: When there is no media, or a clip can't be decoded.
            OSError: When it can't be written.
        """
        relative = f"{where}/{video.file_name}" if where else video.file_name
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
        """Writes a part of a video as a video of its own; see :func:`cut`.

        Args:
            video: The video.
            support: (first, last) 0-based frames, inclusive.
            folder: Folder of the export.
            relative: The file's path in it.
        """
        if self.mode != "none":
            cut(video, support, folder / relative)

    def frames(
        self, video: VideoRecord, folder: Path, paths: Iterable[tuple[int, str]]
    ) -> None:
        """Writes frames as JPEG.

        Args:
            video: The video.
            folder: Folder of the export.
            paths: 0-based frames with their paths in the export.

        Raises:
            VideoError: When a frame can't be decoded.
            OSError: When one can't be written.
        """
        if self.mode == "none":
            return
        wanted = dict(paths)
        for index, frame in read_frames(video, wanted):
            path = folder / wanted[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(frame))


def read_frames(
    video: VideoRecord, frames: Iterable[int]
) -> Iterator[tuple[int, Frame]]:
    """Decodes frames of a video, in ascending order.

    Raises:
        VideoError: When one can't be decoded.
    """
    start = video.start
    with VideoReader(video.path) as reader:
        for index, frame in reader.read(frame + start for frame in frames):
            yield index - start, frame


def jpeg(frame: Frame) -> bytes:
    """Encodes an RGB frame, uint8 (H, W, 3), as a JPEG file."""
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
        video: The video.
        support: (first, last) 0-based frames, inclusive.
        path: Path of the MP4 file.

    Raises:
        VideoError: When a frame can't be decoded.
        OSError: When it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(support[0], support[1] + 1)
    frames = (frame for _, frame in read_frames(video, numbers))
    encode_video(frames, path, video.timeline.rate_between(*support))
