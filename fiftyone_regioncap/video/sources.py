"""Defines what every source of frames provides: metadata and decoded frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from fiftyone_regioncap.core.types import Frame


@dataclass(frozen=True)
class VideoMetadata:
    """Metadata of a video; the fields of ``fo.VideoMetadata``.

    Attributes:
        size_bytes: Size of the file, or of all images of a folder, in bytes.
        mime_type: MIME type, such as ``"video/mp4"``; of the first image for a folder.
        frame_width: Width of the frames as shown, that is after rotation, in pixels.
        frame_height: Height of the frames as shown, in pixels.
        frame_rate: Mean number of frames per second.
        total_frame_count: Number of frames that are shown.
        duration: Duration in seconds.
        encoding_str: The codec's tag in the file, such as ``"avc1"``.
    """

    size_bytes: int
    mime_type: str | None
    frame_width: int
    frame_height: int
    frame_rate: float
    total_frame_count: int
    duration: float
    encoding_str: str


class FrameSource(Protocol):
    """A decoder of one video; :class:`VideoReader` adds the cache and the lock."""

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Frame]]:
        """Decodes the frames ``first`` to ``last``, inclusive, in order.

        Raises:
            VideoError: If one of them cannot be decoded.
        """

    def close(self) -> None:
        """Releases files and decoders."""
