"""Exact access to a video's frames by number, and its metadata.

A frame's number is its rank in presentation order, from 0: the order in which a player
shows it, whatever the order and the time stamps in the file. Time stamps are read from
the packets without decoding them, so opening is fast, and neither the container's frame
count nor its frame rate is trusted: variable frame rate, B-frames, open GOPs, edit
lists and wrong headers all give the right picture. Files whose packets don't tell what
will be shown (AVI with B-frames, raw streams, VP8's hidden frames) are decoded once
when opened to count, and are then only fast when read in order.
"""

from __future__ import annotations

import mimetypes
import os
import queue
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.video.containers import missing_bytes

DEFAULT_IMAGE_FPS = 30.0
"""Frames a second of an image folder when the caller doesn't say."""

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""What counts as a frame in an image folder."""

# Decoding this many frames costs about as much as a seek with its decoder restart.
_SEEK_WORTH = 8

# No codec holds back more pictures than this to put them in order (H.264, HEVC: 16).
_MAX_REORDER = 16

T = TypeVar("T")


@dataclass(frozen=True)
class VideoMetadata:
    """What there is to know of a video; the fields of ``fo.VideoMetadata``.

    Attributes:
        size_bytes: of the file, or of all images of a folder.
        mime_type: such as ``"video/mp4"``; of the first image for a folder.
        frame_width: as shown, that is after rotation, in pixels.
        frame_height: as shown, in pixels.
        frame_rate: mean frames a second.
        total_frame_count: of frames that are shown.
        duration: in seconds.
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


class _Source(Protocol):
    """Where frames come from; :class:`VideoReader` adds the cache and the lock."""

    metadata: VideoMetadata

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Frame]]:
        """The frames ``first`` to ``last``, inclusive, in order."""

    def close(self) -> None:
        """Lets go of files and decoder."""


class VideoReader:
    """A video file, or a folder of images, as a sequence of RGB frames.

    Reading in order streams through the decoder; reading elsewhere seeks to the key
    frame before; stepping backwards decodes a cache-full at a time. Frames are kept in
    a small cache and given out without a copy, so don't write to them. One lock makes
    it safe to share between threads, but threads that read different places make each
    other seek: give each its own reader.

    Frames that a damaged file promises but doesn't hold count in ``len``; reading one
    raises, with the number of the last good frame, so that nothing is silently cut.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cache_frames: int = 32,
        fps: float | None = None,
    ) -> None:
        """Opens a video.

        Args:
            path: a video file, or a folder whose images, in natural order of their
                names ("9.jpg" before "10.jpg"), are the frames.
            cache_frames: how many decoded frames to keep, at least 1.
            fps: frames a second of an image folder, 30 by default; video files know
                their own.

        Raises:
            VideoError: when there is no such file, it is empty, has no picture, or no
                frame of it can be decoded.
            ValueError: when ``fps`` or ``cache_frames`` makes no sense.
        """
        if cache_frames < 1:
            raise ValueError(f"cache_frames is {cache_frames}; give at least 1")
        self.path = os.fspath(path)
        self._cache: OrderedDict[int, Frame] = OrderedDict()
        self._cache_frames = cache_frames
        self._last: int | None = None
        self._lock = threading.RLock()
        self._closed = False
        self._source: _Source
        if os.path.isdir(self.path):
            self._source = _FolderSource(
                self.path, DEFAULT_IMAGE_FPS if fps is None else fps
            )
        elif fps is not None:
            raise ValueError(f"fps is for image folders; {self.path} has its own")
        else:
            self._source = _FileSource(self.path)

    @property
    def metadata(self) -> VideoMetadata:
        """Size, rate, length and encoding."""
        return self._source.metadata

    @property
    def height(self) -> int:
        """Of every frame as shown, in pixels."""
        return self.metadata.frame_height

    @property
    def width(self) -> int:
        """Of every frame as shown, in pixels."""
        return self.metadata.frame_width

    @property
    def fps(self) -> float:
        """Mean frames a second."""
        return self.metadata.frame_rate

    def __len__(self) -> int:
        return self.metadata.total_frame_count

    def __getitem__(self, index: int) -> Frame:
        """The frame, uint8 (H, W, 3) RGB.

        Args:
            index: 0-based, in presentation order; negative ones count from the end.

        Raises:
            IndexError: when there is no such frame.
            VideoError: when the frame can't be decoded, or the reader is closed.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(
                f"{self.path}: no frame {index}; there are {count}, counted from 0"
            )
        index %= count
        with self._lock:
            if self._closed:
                raise VideoError(self.path, "the reader is closed; open a new one")
            if index not in self._cache:
                stepping_back = (
                    self._last is not None and 0 < self._last - index < _SEEK_WORTH
                )
                first = index
                if stepping_back:
                    first = max(index - self._cache_frames + 1, 0)
                for number, frame in self._source.decode(first, index):
                    self._keep(number, frame)
            self._cache.move_to_end(index)
            self._last = index
            return self._cache[index]

    def _keep(self, number: int, frame: Frame) -> None:
        self._cache[number] = frame
        self._cache.move_to_end(number)
        if len(self._cache) > self._cache_frames:
            self._cache.popitem(last=False)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def read(self, indices: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Reads many frames in one pass, whatever order they are asked in.

        Args:
            indices: 0-based frame numbers; doubles are given once.

        Yields:
            (index, frame) in ascending order of index.

        Raises:
            IndexError: when there is no such frame.
            VideoError: when a frame can't be decoded.
        """
        count = len(self)
        for index in sorted(
            {index + count if index < 0 else index for index in indices}
        ):
            yield index, self[index]

    def close(self) -> None:
        """Lets go of the file and of all frames; closing twice is fine."""
        with self._lock:
            self._closed = True
            self._source.close()
            self._cache.clear()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_metadata(
    path: str | os.PathLike[str], *, fps: float | None = None
) -> VideoMetadata:
    """Metadata of a video file or an image folder, without ffprobe.

    Args:
        path: the file or folder.
        fps: frames a second of an image folder.

    Raises:
        VideoError: as :class:`VideoReader`.
    """
    with VideoReader(path, fps=fps, cache_frames=1) as reader:
        return reader.metadata


class _FileSource:
    """Frames of a video file through PyAV."""

    def __init__(self, path: str) -> None:
        self._path = path
        if not os.path.exists(path):
            raise VideoError(path, "there is no such file")
        if os.path.getsize(path) == 0:
            raise VideoError(path, "the file is empty")
        try:
            self._container = av.open(path)
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(path, f"not a video that can be opened: {error}") from None
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & stream.disposition.attached_pic
        ]
        if not streams:
            self._container.close()
            raise VideoError(path, "it has no video stream; is it an audio file?")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"
        # One for all frames: each of its own would start a pool of threads.
        self._to_rgb = VideoReformatter()
        # The frames of the decoder's current run and the number of the next one.
        self._run: Iterator[tuple[int, av.VideoFrame]] | None = None
        self._next = 0
        try:
            self._index()
            first = self._look_at_start()
        except VideoError:
            self._container.close()
            raise
        height, width = _upright(first.to_ndarray(format="rgb24"), first).shape[:2]
        self._coded_size = (first.width, first.height)
        self.metadata = self._describe(height, width)

    def _index(self) -> None:
        """Reads the time stamps of all packets, and which of them are key frames."""
        shown: list[int] = []
        keys: list[tuple[int, int]] = []
        self._cut_off = False
        # AVI knows no presentation times, and VP8's packets may hold hidden frames.
        codec = self._stream.codec_context.codec
        self._counted = codec.name == "vp8" or (
            self._container.format.name == "avi" and not codec.intra_only
        )
        last_duration = 0
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0:
                    continue
                if packet.pts is None:
                    self._counted = True
                    break
                decoded = packet.pts if packet.dts is None else packet.dts
                if packet.is_keyframe:
                    keys.append((packet.pts, decoded))
                if not packet.is_discard:
                    shown.append(packet.pts)
                    last_duration = packet.duration or last_duration
        except av.error.FFmpegError:
            self._cut_off = True
        self._cut_off |= missing_bytes(self._path) > 0
        if self._cut_off and shown:
            # Decoders make up a picture from the half of the last packet; and pictures
            # shown after its decoding time may follow others that are gone, so that
            # their numbers are unknown.
            shown = [time for time in shown[:-1] if time <= decoded]
        pts = np.unique(np.asarray(shown, dtype=np.int64))
        self._counted |= pts.size != len(shown)
        if not self._counted and not (keys and shown):
            raise VideoError(self._path, self._nothing())
        self._pts = pts
        self._keys = sorted(keys)
        self._last_duration = last_duration

    def _look_at_start(self) -> av.VideoFrame:
        """Decodes the first frame and forgets those before it that never come.

        A stream cut out of a longer one may open with frames that refer to pictures
        before the cut; decoders drop them, as players do.
        """
        start: av.VideoFrame | None = None
        if self._counted:
            count = 0
            for number, frame in self._decode_from(0):
                start = start or frame
                count = number + 1
            if self._cut_off:
                # Pictures in the wrong order, and one made up from half a packet.
                waiting = self._stream.codec_context.has_b_frames * _MAX_REORDER
                count = max(count - 1 - waiting, 0)
            self._pts = np.arange(count, dtype=np.int64)
        else:
            came = []
            first_key = int(np.searchsorted(self._pts, self._keys[0][0]))
            for number, frame in self._decode_from(0):
                start = start or frame
                came.append(number)
                if number >= first_key:
                    break
            if came:
                self._pts = np.concatenate([self._pts[came], self._pts[came[-1] + 1 :]])
        if start is None:
            raise VideoError(self._path, self._nothing())
        if not self._counted:
            self._key_numbers = [
                int(np.searchsorted(self._pts, pts)) for pts, _ in self._keys
            ]
        return start

    def _nothing(self) -> str:
        return (
            "the file is cut off before its first frame"
            if self._cut_off
            else "the file is damaged or of an unknown codec"
        )

    def _describe(self, height: int, width: int) -> VideoMetadata:
        count = len(self._pts)
        if self._cut_off:
            # More frames are promised than there are, so that reading on must fail.
            count = max(count + 1, self._stream.frames)
        stated = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        rate, duration = stated, 0.0
        if not self._counted:
            ticks = int(self._pts[-1] - self._pts[0]) + self._last_duration
            duration = ticks * float(self._stream.time_base)
            # A constant rate is exact in the header; else only the mean is true.
            if duration > 0 and abs(duration * stated - len(self._pts)) > 1:
                rate = len(self._pts) / duration
        if rate <= 0:
            rate = DEFAULT_IMAGE_FPS
        if self._counted or duration <= 0 or self._cut_off:
            duration = count / rate
        mime_type = mimetypes.guess_type(self._path)[0]
        if mime_type is None or not mime_type.startswith("video/"):
            mime_type = "video/" + self._container.format.name.split(",")[0]
        tag = self._stream.codec_context.codec_tag
        return VideoMetadata(
            size_bytes=os.path.getsize(self._path),
            mime_type=mime_type,
            frame_width=width,
            frame_height=height,
            frame_rate=rate,
            total_frame_count=count,
            duration=duration,
            encoding_str=tag if tag.isalnum() else self._stream.codec_context.name,
        )

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Frame]]:
        """The frames ``first`` to ``last``, inclusive, in order.

        Raises:
            VideoError: when one of them can't be decoded.
        """
        expected = first
        last_good: int | None = None
        for start in self._starts(first):
            if start is not None:
                self._run = self._decode_from(start)
                self._next = 0
            assert self._run is not None
            for number, frame in self._run:
                self._next = number + 1
                if number > expected or number >= len(self._pts):
                    break
                last_good = number if last_good is None else max(last_good, number)
                if number == expected:
                    yield number, self._picture(frame)
                    expected += 1
                    if expected > last:
                        return
        self._run = None
        reason = "missing, the file is cut off" if self._cut_off else "damaged"
        raise VideoError(self._path, f"frame {expected} is {reason}", last_good)

    def _starts(self, target: int) -> Iterator[int | None]:
        """Where to start decoding for a frame: key frames, the likeliest first.

        None means to go on with the current run. Going further back than to the key
        frame before is for streams that refresh gradually, and for damaged ones.
        """
        key = 0
        if not self._counted:
            key = max(bisect_right(self._key_numbers, target) - 1, 0)
        saved = 0 if self._counted else self._key_numbers[key] - self._next
        if self._run is not None and self._next <= target and saved < _SEEK_WORTH:
            yield None
        yield from sorted({key, max(key - 1, 0), 0}, reverse=True)

    def _decode_from(self, key: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes to the end from a key frame on.

        Args:
            key: position in the list of key frames.

        Yields:
            (number, frame) in presentation order, without frames that decode wrongly
            because they refer to pictures before the key frame.
        """
        count = 0
        last = -1
        trusted = key == 0
        for packet, first in self._packets_from(key):
            try:
                decoded = packet.decode() if packet else self._stream.decode(None)
            except av.error.FFmpegError:
                continue
            for frame in decoded:
                if self._counted:
                    yield count, frame
                    count += 1
                    continue
                if frame.pts is None or frame.is_corrupt:
                    continue
                number = int(np.searchsorted(self._pts, frame.pts))
                known = number < len(self._pts) and self._pts[number] == frame.pts
                if not known or number < first:
                    continue
                # Containers also mark where a gradual refresh begins; no key frame.
                trusted = trusted or frame.pict_type == PictureType.I
                if not trusted:
                    return
                if number <= last:
                    raise VideoError(
                        self._path,
                        "its time stamps contradict the order of its pictures; "
                        "write the file anew, for example with ffmpeg",
                        last,
                    )
                last = number
                yield number, frame

    def _packets_from(self, key: int) -> Iterator[tuple[av.Packet | None, int]]:
        """Packets from a key frame on, or from one before it if the seek is coarse.

        Yields:
            the packet, None to flush the decoder, and the number of the first frame
            that is good when decoding starts here.
        """
        wanted = self._keys[key][0] if self._keys else None
        # Containers seek by presentation or by decoding time; 0 stands for the start.
        times = [] if key == 0 or self._counted else [*self._keys[key]]
        for time in [*times, None]:
            if time is None:
                self._rewind()
            else:
                self._container.seek(time, stream=self._stream, backward=True)
            first: int | None = 0 if time is None else None
            started = self._counted
            try:
                for packet in self._container.demux(self._stream):
                    if not started and packet.size and packet.is_keyframe:
                        started = True
                        if first is None:
                            first = int(np.searchsorted(self._pts, packet.pts))
                            if wanted is not None and packet.pts > wanted:
                                break
                    if started and packet.size:
                        assert first is not None
                        yield packet, first
                else:
                    yield None, first or 0
                    return
            except av.error.FFmpegError:
                yield None, first or 0
                return

    def _rewind(self) -> None:
        """Starts over: reopening is the one way that works in every container."""
        index = self._stream.index  # read before its container goes
        self._container.close()
        self._container = av.open(self._path)
        self._stream = self._container.streams[index]
        self._stream.thread_type = "AUTO"

    def _picture(self, frame: av.VideoFrame) -> Frame:
        width, height = self._coded_size
        rgb = self._to_rgb.reformat(frame, width=width, height=height, format="rgb24")
        return _upright(rgb.to_ndarray(), frame)

    def close(self) -> None:
        """Lets go of file and decoder."""
        self._run = None
        self._container.close()


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


class _FolderSource:
    """Frames of a folder of images."""

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
        self._size = self._load(0).shape
        mime_type = mimetypes.guess_type(self._files[0])[0]
        self.metadata = VideoMetadata(
            size_bytes=sum(file.stat().st_size for file in self._files),
            mime_type=mime_type,
            frame_width=self._size[1],
            frame_height=self._size[0],
            frame_rate=float(fps),
            total_frame_count=len(self._files),
            duration=len(self._files) / fps,
            encoding_str=self._files[0].suffix.lower().lstrip("."),
        )

    def _load(self, index: int) -> Frame:
        file = self._files[index]
        last_good = index - 1 if index else None
        try:
            with Image.open(file) as image:
                frame = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise VideoError(
                self._path, f"{file.name} is no image: {error}", last_good
            ) from None
        return frame

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Frame]]:
        """The frames ``first`` to ``last``, inclusive, in order.

        Raises:
            VideoError: when one is damaged or of another size than the first.
        """
        for index in range(first, last + 1):
            frame = self._load(index)
            if frame.shape != self._size:
                raise VideoError(
                    self._path,
                    f"{self._files[index].name} is {frame.shape[1]}x{frame.shape[0]}, "
                    f"the first image {self._size[1]}x{self._size[0]}; "
                    "make all images one size",
                    index - 1,
                )
            yield index, frame

    def close(self) -> None:
        """Nothing is open between two frames."""


def _natural(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key that takes runs of digits as numbers."""
    parts = re.findall(r"\d+|\D+", file.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], (
        file.name
    )


def decode_ahead(items: Iterable[T], depth: int = 4) -> Generator[T, None, None]:
    """Runs an iterator in a thread of its own, some items ahead of its reader.

    PyAV and OpenCV let go of the GIL while they work, so decoding then overlaps with
    what is done to the frames. Closing the returned generator, or leaving its loop,
    stops the thread and closes the source.

    Args:
        items: for example ``reader.read(range(first, last + 1))``; the thread is its
            only user.
        depth: how many items may wait, which bounds the memory.

    Yields:
        the items in order. An exception of the source is raised where it came up.
    """
    waiting: queue.Queue[tuple[bool, T | None, BaseException | None]]
    waiting = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, T | None, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put((True, item, None)):
                    return
            put((False, None, None))
        except BaseException as error:  # handed on to the reader
            put((False, None, error))
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    thread = threading.Thread(target=work, name="decode-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item, error = waiting.get()
            if error is not None:
                raise error
            if not more:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
