"""Indexes of video files: which frames are shown, when, and where decoding can start.

The index comes from the packets, which are read without decoding them, so that neither
the container's frame count nor its frame rate is trusted. It is kept in memory per
file, so that a file that is opened again is not read again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import av
import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.video.containers import missing_bytes
from fiftyone_regioncap.video.sources import VideoMetadata
from fiftyone_regioncap.video.timeline import Timeline

Fingerprint: TypeAlias = tuple[str, int, int, int]
"""Path, size, modification time in nanoseconds and inode of a file."""

_H264_IDR = 5
_H264_SLICES = range(1, 6)


class KeyFrame(NamedTuple):
    """A packet at which decoding can start.

    Attributes:
        number: Index of the first frame that is shown from there on.
        pts: Presentation time in ticks; the decoding time if the packet has none.
        dts: Decoding time in ticks; None if the packet has none.
    """

    number: int
    pts: int
    dts: int | None


@dataclass(frozen=True)
class PacketIndex:
    """Times and key frames of a video stream, as its packets state them.

    Attributes:
        pts: int64 (N,) presentation times of the frames in ticks, ascending; the
            frames' numbers where the packets do not tell the times.
        keys: The packets at which decoding can start, in order of presentation.
        timed: Whether the packets tell what is shown and when. AVI files, raw streams
            and VP8, whose packets may hold hidden frames, do not.
        cut_off: Whether the end of the file is missing.
        last_duration: Duration of the last frame in ticks; 0 if unknown.
        closed: Whether each key frame comes before all that is shown after it, in the
            file as on the screen, and none refers to what is before it.
        checksums: int per frame of an untimed file, by which a seek is verified.
    """

    pts: NDArray[np.int64]
    keys: tuple[KeyFrame, ...]
    timed: bool
    cut_off: bool
    last_duration: int
    closed: bool
    checksums: tuple[int, ...] = ()


@dataclass(frozen=True)
class VideoIndex:
    """Index of a video file: its packets, metadata and frame times.

    Attributes:
        packets: The index of its packets.
        metadata: Size, rate, length and encoding.
        coded_size: (width, height) of the frames before rotation, in pixels.
        stream: Position of the video stream in the container.
        timeline: Presentation times of the frames.
        first_checksum: CRC-32 of the first frame's RGB pixels.
        decord_obstacle: Why decord cannot be proven right for the file; None if it can.
    """

    packets: PacketIndex
    metadata: VideoMetadata
    coded_size: tuple[int, int]
    stream: int
    timeline: Timeline
    first_checksum: int
    decord_obstacle: str | None


CACHED_FRAMES = 4_000_000
"""Number of frames whose indexes are kept, at some 16 bytes each."""

_cache: LRUCache[Fingerprint, VideoIndex] = LRUCache(
    CACHED_FRAMES, getsizeof=lambda index: len(index.timeline.times) + 100
)
_cache_lock = threading.Lock()


def fingerprint(path: str) -> Fingerprint:
    """Identifies the content of a file without reading it."""
    status = os.stat(path)
    return os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ino


def cached_index(path: str) -> VideoIndex | None:
    """Returns the index of a file that was opened before and has not changed since."""
    with _cache_lock:
        return _cache.get(fingerprint(path))


def keep_index(path: str, index: VideoIndex) -> None:
    """Keeps the index of a file for :func:`cached_index`, unless it is very long."""
    with _cache_lock, contextlib.suppress(ValueError):
        _cache[fingerprint(path)] = index


def scan_packets(
    path: str, container: av.container.InputContainer, stream: av.VideoStream
) -> PacketIndex:
    """Reads the time stamps of all packets, and which of them are key frames.

    Args:
        path: Path of the file, for messages.
        container: The open file; it is read to its end.
        stream: The video stream.

    Raises:
        VideoError: If no packet holds a frame.
    """
    codec = stream.codec_context.codec
    # AVI stores no presentation times, and VP8's packets may hold hidden frames.
    timed = codec.name != "vp8" and (
        container.format.name != "avi" or bool(codec.intra_only)
    )
    shown: list[int] = []
    keys: list[tuple[int, KeyFrame]] = []
    packets = decoded = last_duration = 0
    closed = True
    cut_off = missing_bytes(path) > 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            timed &= packet.pts is not None
            if packet.is_keyframe:
                time = packet.dts if packet.pts is None else packet.pts
                keys.append((packets, KeyFrame(0, time, packet.dts)))
                closed &= _is_idr(packet, stream)
            if timed:
                decoded = packet.pts if packet.dts is None else packet.dts
                if not packet.is_discard:
                    shown.append(packet.pts)
                    last_duration = packet.duration or last_duration
            packets += 1
    except av.error.FFmpegError:
        cut_off = True
    if cut_off and shown:
        # Decoders make up a picture from the half of the last packet; and pictures
        # shown after its decoding time may follow others that are gone, so that
        # their numbers are unknown.
        shown = [time for time in shown[:-1] if time <= decoded]
    pts = np.unique(np.asarray(shown, dtype=np.int64))
    timed &= pts.size == len(shown)
    if not timed:
        found = tuple(key for _, key in keys if key.dts is not None)
        return PacketIndex(pts[:0], found, False, cut_off, last_duration, False)
    if not (keys and shown):
        raise VideoError(path, no_frame_reason(cut_off))
    closed &= len(shown) == packets and all(
        np.searchsorted(pts, key.pts) == rank for rank, key in keys
    )
    ordered = sorted(key for _, key in keys)
    return PacketIndex(
        pts, numbered(ordered, pts), True, cut_off, last_duration, closed
    )


def numbered(
    keys: list[KeyFrame] | tuple[KeyFrame, ...], pts: NDArray[np.int64]
) -> tuple[KeyFrame, ...]:
    """Numbers key frames by their rank among the presentation times."""
    return tuple(
        key._replace(number=int(np.searchsorted(pts, key.pts))) for key in keys
    )


def no_frame_reason(cut_off: bool) -> str:
    """Says why a file has no frame that can be decoded."""
    return (
        "the file is cut off before its first frame"
        if cut_off
        else "the file is damaged or of an unknown codec"
    )


def decord_obstacle(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: PacketIndex,
    first: av.VideoFrame,
    dropped: int,
) -> str | None:
    """Says why decord cannot be proven right for a file, from its index alone.

    decord numbers frames by the order of their packets and counts what comes out of
    the decoder, so it is right where nothing is hidden, dropped, turned or shown out
    of order across a key frame.

    Args:
        container: The open file.
        stream: The video stream.
        packets: The index of its packets.
        first: The first frame, decoded.
        dropped: Number of frames at the start that cannot be decoded.

    Returns:
        The reason, or None if decord can be used.
    """
    formats = set(container.format.name.split(","))
    obstacles = {
        "its packets do not tell what is shown when": not packets.timed,
        "the file is cut off": packets.cut_off,
        "the container is neither MP4 nor Matroska": not formats & {"mp4", "matroska"},
        "it is not 8-bit 4:2:0 H.264": stream.codec_context.name != "h264"
        or first.format.name not in ("yuv420p", "yuvj420p"),
        "it has several video streams": len(container.streams.video) > 1,
        "frames are dropped, or key frames are not closed": dropped > 0
        or not packets.closed,
        "frames are rotated": "DISPLAYMATRIX" in first.side_data,
    }
    return next((reason for reason, holds in obstacles.items() if holds), None)


def _is_idr(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Returns whether an H.264 key packet of MP4 or Matroska is an IDR picture.

    Containers also mark pictures where a gradual refresh begins, or which those after
    them may look past. Packets of other codecs count as what their flag says.
    """
    header = stream.codec_context.extradata
    if stream.codec_context.name != "h264":
        return True
    if not header or len(header) < 5 or header[0] != 1:
        return False  # not in length-prefixed form (ISO/IEC 14496-15)
    return next(
        (
            kind == _H264_IDR
            for kind in _nal_types(bytes(packet), (header[4] & 3) + 1)
            if kind in _H264_SLICES
        ),
        False,
    )


def _nal_types(data: bytes, length_size: int) -> Iterator[int]:
    """Yields the types of an H.264 packet's NAL units, which follow their lengths."""
    place = 0
    while place + length_size < len(data):
        yield data[place + length_size] & 31
        place += length_size + int.from_bytes(data[place : place + length_size], "big")
