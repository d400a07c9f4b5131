"""What every source of frames provides: its metadata and a way to decode frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from fiftyone_regioncap.core.types import Frame


@dataclass(frozen=True)
class VideoMetadata:
    """Metadata of a video; the fields of ``fo.VideoMetadata``.

    Attributes:
        size_bytes: size of the file, or of all images of a folder, in bytes.
        mime_type: such as ``"video/mp4"``; of the first image for a folder.
        frame_width: width of the frames as shown, that is after rotation, in pixels.
        frame_height: height of the frames as shown, in pixels.
        frame_rate: mean number of frames per second.
        total_frame_count: number of frames that are shown.
        duration: duration in seconds.
        encoding_str: the codec's tag in the file, such as ``"avc1"``.
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
            VideoError: if one of them cannot be decoded.
        """

    def close(self) -> None:
        """Releases files and decoders."""
