"""Frames of video files through PyAV, each identified by its presentation time.

Files whose packets do not tell what will be shown (AVI with B-frames, raw streams,
VP8's hidden frames) are decoded once when they are first opened, to count. Checksums
that are kept of that pass verify later seeks; where one does not hold, the file is read
from its start.
"""

from __future__ import annotations

import mimetypes
import os
import stat
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.video.index import (
    PacketIndex,
    VideoIndex,
    cached_index,
    decord_obstacle,
    keep_index,
    no_frame_reason,
    numbered,
    scan_packets,
)
from fiftyone_regioncap.video.sources import VideoMetadata
from fiftyone_regioncap.video.timeline import Timeline

UNKNOWN_RATE = 30.0
"""Frames per second of a file that does not state any rate."""

SEEK_WORTH = 8
"""Decoding this many frames costs about as much as a seek and its decoder restart."""

# No codec holds back more pictures than this to put them in order (H.264, HEVC: 16).
_MAX_REORDER = 16


class PyAVSource:
    """The frames of a video file through PyAV.

    Attributes:
        path: Path of the file.

    Args:
        path: Path of the file.

    Raises:
        VideoError: If there is no such file, it is empty or not a regular file, has no
            video stream, or no frame of it can be decoded.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        check_file(path)
        self._container: av.container.InputContainer | None = None
        self._stream: av.VideoStream
        # One for all frames: each of its own would start a pool of threads.
        self._to_rgb = VideoReformatter()
        # The frames of the decoder's current run and the number of the next one.
        self._run: Iterator[tuple[int, av.VideoFrame]] | None = None
        self._next = 0
        # Whether the seeks of an untimed file have held so far.
        self._seekable = True
        self._packets: PacketIndex
        index = cached_index(path)
        if index is None:
            try:
                index = self._build_index()
            except VideoError:
                self.close()
                raise
            keep_index(path, index)
        self._packets = index.packets
        self.index = index

    def _build_index(self) -> VideoIndex:
        try:
            container = av.open(self.path)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                self.path, f"not a video that can be opened: {error}"
            ) from None
        self._container = container
        streams = [
            stream
            for stream in container.streams.video
            if not stream.disposition & stream.disposition.attached_pic
        ]
        if not streams:
            raise VideoError(self.path, "it has no video stream; is it an audio file?")
        self._stream = stream = streams[0]
        stream.thread_type = "AUTO"
        self._packets = scan_packets(self.path, container, stream)
        scanned = len(self._packets.pts)
        first = self._look_at_start() if self._packets.timed else self._count()
        if first is None:
            raise VideoError(self.path, no_frame_reason(self._packets.cut_off))
        stream = self._stream
        image = _upright(first.to_ndarray(format="rgb24"), first)
        height, width = image.shape[:2]
        metadata = self._describe(height, width)
        if self._packets.timed:
            ticks = (self._packets.pts - self._packets.pts[0]).astype(np.float64)
            begins = int(self._packets.pts[0]) * float(stream.time_base)
            playback = (self._container.start_time or 0) / av.time_base
            timeline = Timeline(
                ticks * float(stream.time_base),
                metadata.frame_rate,
                max(begins - playback, 0.0),
            )
        else:
            count = len(self._packets.pts)
            timeline = Timeline.constant(count, metadata.frame_rate)
        return VideoIndex(
            packets=self._packets,
            metadata=metadata,
            coded_size=(first.width, first.height),
            stream=stream.index,
            timeline=timeline,
            first_checksum=zlib.crc32(np.ascontiguousarray(image).data),
            decord_obstacle=decord_obstacle(
                self._container,
                stream,
                self._packets,
                first,
                scanned - len(timeline.times),
            ),
        )

    def _look_at_start(self) -> av.VideoFrame | None:
        """Decodes the first frame and forgets those before it that never come.

        A stream cut out of a longer one may open with frames that refer to pictures
        before the cut; decoders drop them, as players do.
        """
        start: av.VideoFrame | None = None
        pts, first_key = self._packets.pts, self._packets.keys[0].number
        came = []
        for number, frame in self._decode_from(0):
            start = start or frame
            came.append(number)
            if number >= first_key:
                break
        if came:
            pts = np.concatenate([pts[came], pts[came[-1] + 1 :]])
            keys = numbered(self._packets.keys, pts)
            self._packets = replace(self._packets, pts=pts, keys=keys)
        return start

    def _count(self) -> av.VideoFrame | None:
        """Decodes an untimed file once, to count its frames and number its keys."""
        start: av.VideoFrame | None = None
        checksums: list[int] = []
        numbers: list[int] = []
        for number, frame in self._decode_from(0):
            start = start or frame
            checksums.append(_checksum(frame))
            if frame.key_frame:
                numbers.append(number)
        count = len(checksums)
        if self._packets.cut_off:
            # Pictures in the wrong order, and one made up from half a packet.
            waiting = self._stream.codec_context.has_b_frames * _MAX_REORDER
            count = max(count - 1 - waiting, 0)
        keys = self._packets.keys
        self._packets = replace(
            self._packets,
            pts=np.arange(count, dtype=np.int64),
            checksums=tuple(checksums[:count]),
            keys=tuple(
                key._replace(number=number)
                for key, number in zip(keys, numbers, strict=False)
                if len(keys) == len(numbers) and number < count
            ),
        )
        return start

    def _describe(self, height: int, width: int) -> VideoMetadata:
        packets, stream = self._packets, self._stream
        count = len(packets.pts)
        if packets.cut_off:
            # More frames are promised than there are, so that reading on must fail.
            count = max(count + 1, stream.frames)
        stated = float(stream.average_rate or stream.guessed_rate or 0)
        rate, duration = stated, 0.0
        if packets.timed:
            ticks = int(packets.pts[-1] - packets.pts[0]) + packets.last_duration
            duration = ticks * float(stream.time_base)
            # A constant rate is exact in the header; else only the mean is true.
            if duration > 0 and abs(duration * stated - len(packets.pts)) > 1:
                rate = len(packets.pts) / duration
        if rate <= 0:
            rate = UNKNOWN_RATE
        if not packets.timed or duration <= 0 or packets.cut_off:
            duration = count / rate
        mime_type = mimetypes.guess_type(self.path)[0]
        if mime_type is None or not mime_type.startswith("video/"):
            assert self._container is not None
            mime_type = "video/" + self._container.format.name.split(",")[0]
        tag = stream.codec_context.codec_tag
        return VideoMetadata(
            size_bytes=os.path.getsize(self.path),
            mime_type=mime_type,
            frame_width=width,
            frame_height=height,
            frame_rate=rate,
            total_frame_count=count,
            duration=duration,
            encoding_str=tag if tag.isalnum() else stream.codec_context.name,
        )

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Frame]]:
        """See :meth:`FrameSource.decode`."""
        expected = first
        last_good: int | None = None
        for start in self._starts(first):
            if start is not None:
                self._run = self._decode_from(start)
                self._next = 0
            assert self._run is not None
            for number, frame in self._run:
                self._next = number + 1
                if number > expected or number >= len(self._packets.pts):
                    break
                last_good = number if last_good is None else max(last_good, number)
                if number == expected:
                    yield number, self._picture(frame)
                    expected += 1
                    if expected > last:
                        return
        self._run = None
        reason = "missing, the file is cut off" if self._packets.cut_off else "damaged"
        raise VideoError(self.path, f"frame {expected + 1} is {reason}", last_good)

    def key_before(self, number: int) -> int:
        """Returns the frame from which a frame has to be decoded."""
        keys = self._packets.keys if self._seekable else ()
        rank = bisect_right(keys, number, key=lambda key: key.number) - 1
        return keys[rank].number if rank >= 0 else 0

    def _starts(self, target: int) -> Iterator[int | None]:
        """Positions of the key frames to decode from for a frame, the likeliest first.

        None means to go on with the current run. Going further back than to the key
        frame before is for streams that refresh gradually, and for damaged ones.
        """
        keys = self._packets.keys if self._seekable else ()
        key = max(bisect_right(keys, target, key=lambda key: key.number) - 1, 0)
        saved = keys[key].number - self._next if keys else 0
        if self._run is not None and self._next <= target and saved < SEEK_WORTH:
            yield None
        yield from sorted({key, max(key - 1, 0), 0}, reverse=True)

    def _decode_from(self, key: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes to the end from a key frame on.

        Args:
            key: Position in the list of key frames.

        Yields:
            (number, frame) in presentation order, without frames that decode wrongly
            because they refer to pictures before the key frame.
        """
        timed, pts = self._packets.timed, self._packets.pts
        untimed = 0  # the number of the next frame of an untimed file
        last = -1
        trusted = key == 0
        for packet, first in self._packets_from(key):
            try:
                decoded = packet.decode() if packet else self._stream.decode(None)
            except av.error.FFmpegError:
                continue
            for frame in decoded:
                if not timed:
                    trusted = trusted or first == 0 or bool(frame.key_frame)
                    if not trusted:
                        continue
                    number = first + untimed
                    if first and not self._verify(number, frame):
                        return
                    yield number, frame
                    untimed += 1
                    continue
                if frame.pts is None or frame.is_corrupt:
                    continue
                number = int(np.searchsorted(pts, frame.pts))
                known = number < len(pts) and pts[number] == frame.pts
                if not known or number < first:
                    continue
                # Containers also mark where a gradual refresh begins; no key frame.
                trusted = trusted or frame.pict_type == PictureType.I
                if not trusted:
                    return
                if number <= last:
                    raise VideoError(
                        self.path,
                        "its time stamps contradict the order of its pictures; "
                        "write the file anew, for example with ffmpeg",
                        last,
                    )
                last = number
                yield number, frame

    def _verify(self, number: int, frame: av.VideoFrame) -> bool:
        """Verifies the number of a frame after a seek in an untimed file."""
        checksums = self._packets.checksums
        if number >= len(checksums):
            return False
        self._seekable = checksums[number] == _checksum(frame)
        return self._seekable

    def _packets_from(self, key: int) -> Iterator[tuple[av.Packet | None, int]]:
        """Packets from a key frame on, or from one before it if the seek is coarse.

        Yields:
            The packet, None to flush the decoder, and the number of the first frame
            that is good when decoding starts here.
        """
        timed = self._packets.timed
        wanted = self._packets.keys[key] if self._packets.keys else None
        # Containers seek by presentation or by decoding time; None is the start.
        times: list[int | None] = [None]
        if wanted is not None and key > 0:
            times = [wanted.pts, wanted.dts, None] if timed else [wanted.dts, None]
        for time in times:
            if time is None or self._container is None:
                self._open()
            assert self._container is not None
            try:
                if time is not None:
                    self._container.seek(time, stream=self._stream, backward=True)
            except av.error.FFmpegError:
                continue
            first: int | None = 0 if time is None else None
            started = time is None and not timed
            try:
                for packet in self._container.demux(self._stream):
                    if not started and packet.size and packet.is_keyframe:
                        if timed:
                            started = True
                            if first is None:
                                first = int(
                                    np.searchsorted(self._packets.pts, packet.pts)
                                )
                                if wanted is not None and packet.pts > wanted.pts:
                                    break
                        elif wanted is not None and wanted.dts is not None:
                            if packet.dts is None or packet.dts > wanted.dts:
                                break
                            started, first = packet.dts == wanted.dts, wanted.number
                    if started and packet.size:
                        assert first is not None
                        yield packet, first
                else:
                    yield None, first or 0
                    return
            except av.error.FFmpegError:
                yield None, first or 0
                return

    def _open(self) -> None:
        """Opens the file, or starts over: the one way that works in all containers."""
        if self._container is None:
            position = self.index.stream
        else:
            position = self._stream.index  # read before its container goes
            self._container.close()
        self._container = av.open(self.path)
        self._stream = self._container.streams[position]
        self._stream.thread_type = "AUTO"

    def _picture(self, frame: av.VideoFrame) -> Frame:
        width, height = self.index.coded_size
        rgb = self._to_rgb.reformat(frame, width=width, height=height, format="rgb24")
        return _upright(rgb.to_ndarray(), frame)

    def close(self) -> None:
        """Releases the file and the decoder."""
        self._run = None
        if self._container is not None:
            self._container.close()
            self._container = None


def check_file(path: str) -> None:
    """Raises :class:`VideoError` unless a path is a regular file with content."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else f"it cannot be read: {error}"
        raise VideoError(path, reason) from None
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, "it is a pipe or a device; give a file")
    if status.st_size == 0:
        raise VideoError(path, "the file is empty")


def _checksum(frame: av.VideoFrame) -> int:
    """Returns a checksum of every fourth row of a frame's first plane."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return zlib.crc32(rows[: plane.height : 4, : plane.width].tobytes())


def _upright(image: NDArray[np.uint8], frame: av.VideoFrame) -> Frame:
    """Turns and mirrors a decoded image as the file's display matrix says."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return image
    # Rows of a 3x3 fixed-point matrix; (x, y) goes to (a x + c y, b x + d y).
    (a, b), (c, d) = np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)[:2, :2]
    if abs(a) >= abs(b):
        across, down = a, d
    else:
        image, across, down = image.transpose(1, 0, 2), c, b
    if across < 0:
        image = image[:, ::-1]
    if down < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)
