"""Reads the frames of a video by number, exactly, and its metadata.

A frame's number is its rank in presentation order, from 0: the order in which a player
shows it, whatever the order and the time stamps in the file. Variable frame rates,
B-frames, open GOPs, edit lists and wrong headers all give the right picture.

Frames are decoded by PyAV. The argument ``backend`` chooses otherwise, and so does the
environment variable ``REGIONCAP_VIDEO_BACKEND``: ``auto`` takes decord where it is
installed, provably right for the file, and the video is short; ``decord`` forces it.
Both give the same pixels.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Literal, TypeAlias, cast, get_args

import av
from cachetools import LRUCache

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.video.decord_source import DecordSource, DecordUnfit
from fiftyone_regioncap.video.image_source import ImageSource, is_image_source
from fiftyone_regioncap.video.pyav_source import SEEK_WORTH, PyAVSource
from fiftyone_regioncap.video.rewinding import LONGEST_COPY, copy_frames
from fiftyone_regioncap.video.sources import FrameSource, VideoMetadata
from fiftyone_regioncap.video.timeline import Timeline

logger = logging.getLogger(__name__)

Backend: TypeAlias = Literal["auto", "pyav", "decord"]
"""What decodes video files; ``auto`` takes decord for short, plain ones."""

BACKEND_VARIABLE = "REGIONCAP_VIDEO_BACKEND"
"""Environment variable that states the backend where no argument does."""

DECORD_BYTES = 256 << 20
"""Most bytes of all frames of a video that decord takes unless it is forced.

Its decoder runs on while the caller works, and keeps what it decodes without a bound.
"""

COPY_WORTH = 8
"""Number of blocks before a frame without a key frame that are worth a copy
when stepping backwards."""

DEFAULT_IMAGE_FPS = 30.0
"""Frames per second of an image folder where the caller does not state it."""


class VideoReader:
    """A video file, or a folder of images, as a sequence of RGB frames.

    Reading in order streams through the decoder; reading elsewhere seeks to the key
    frame before; stepping backwards decodes a cache-full at a time, from a temporary
    copy where key frames are far apart. Frames are kept in a small cache and given out
    as they are, so don't write to them. One lock makes it safe to share between
    threads, but threads that read different places make each other seek: give each its
    own reader. Decoders do not survive a fork: open readers in the process that uses
    them.

    Frames that a damaged file promises but does not hold count in ``len``; reading one
    raises, with the number of the last good frame, so that nothing is silently cut.

    Attributes:
        path: Path of the file or folder.
        metadata: Size, rate, length and encoding.
        timeline: When the frames are shown.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cache_frames: int = 32,
        fps: float | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Opens a video.

        Args:
            path: A video file, or a folder whose images, in natural order of their
                names ("9.jpg" before "10.jpg"), are the frames, or a list of images
                (:func:`fiftyone_regioncap.video.image_source.write_list`).
            cache_frames: Number of decoded frames to keep, at least 1.
            fps: Frames per second of an image folder, 30 by default; video files
                state their own.
            backend: ``"pyav"``, ``"decord"``, or ``"auto"`` for decord where it is
                provably right and the video short; by default what
                ``$REGIONCAP_VIDEO_BACKEND`` says, else ``"pyav"``: decord was no faster
                here, and conceals damage that PyAV reports.

        Raises:
            VideoError: If there is no such file, it is empty or not a regular file, has
                no picture, no frame of it can be decoded, or the backend ``"decord"``
                is wanted and not provably right.
            ValueError: If ``fps``, ``cache_frames`` or ``backend`` is not valid.
        """
        if cache_frames < 1:
            raise ValueError(f"cache_frames is {cache_frames}; give at least 1")
        self.path = os.fspath(path)
        self._cache: LRUCache[int, Frame] = LRUCache(maxsize=cache_frames)
        self._last: int | None = None
        self._lock = threading.RLock()
        self._closed = False
        self._pyav: PyAVSource | None = None
        self._source: FrameSource | None = None
        self._copy: PyAVSource | None = None
        self._copied = range(0)
        wanted = _backend(backend)
        if is_image_source(self.path):
            folder = ImageSource(self.path, DEFAULT_IMAGE_FPS if fps is None else fps)
            self._source = folder
            self.metadata: VideoMetadata = folder.metadata
            self.timeline = Timeline.constant(len(self), self.fps)
        elif fps is not None:
            raise ValueError(f"fps is for image folders; {self.path} has its own")
        else:
            self._pyav = PyAVSource(self.path)
            self.metadata = self._pyav.index.metadata
            self.timeline = self._pyav.index.timeline
            if wanted == "pyav":
                self._source = self._pyav
            elif wanted == "decord":
                self._source = self._choose(self._pyav, forced=True)

    @property
    def backend(self) -> str:
        """Decoder of the frames: ``"pyav"``, ``"decord"`` or ``"images"``."""
        with self._lock:
            if isinstance(self._opened(), DecordSource):
                return "decord"
        return "images" if self._pyav is None else "pyav"

    @property
    def height(self) -> int:
        """Height of every frame as shown, in pixels."""
        return self.metadata.frame_height

    @property
    def width(self) -> int:
        """Width of every frame as shown, in pixels."""
        return self.metadata.frame_width

    @property
    def fps(self) -> float:
        """Mean number of frames per second."""
        return self.metadata.frame_rate

    def __len__(self) -> int:
        return self.metadata.total_frame_count

    def __getitem__(self, index: int) -> Frame:
        """Returns a frame, uint8 (H, W, 3) RGB.

        Args:
            index: 0-based, in presentation order; negative ones count from the end.

        Raises:
            IndexError: If there is no such frame.
            VideoError: If the frame cannot be decoded, or the reader is closed.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"{self.path} has {count} frames, so no index {index}")
        index %= count
        with self._lock:
            if self._closed:
                raise VideoError(self.path, "the reader is closed; open a new one")
            if index not in self._cache:
                stepping_back = (
                    self._last is not None and 0 < self._last - index < SEEK_WORTH
                )
                if stepping_back:
                    block = int(self._cache.maxsize)
                    first = max(index - block + 1, 0)
                    self._prepare_stepping_back(first, block)
                    # Of a frame before that nobody has asked for.
                    with suppress(VideoError):
                        self._decode(first, index)
                if index not in self._cache:
                    self._decode(index, index)
            self._last = index
            return self._cache[index]

    def _prepare_stepping_back(self, first: int, block: int) -> None:
        """Copies what comes before a frame if its key frame is many blocks away."""
        pyav = self._pyav
        if pyav is None or first in self._copied:
            return
        start = max(pyav.key_before(first), first - LONGEST_COPY)
        if first - start < COPY_WORTH * block:
            return
        self._remove_copy()
        try:
            frames = pyav.decode(start, first + block - 1)
            self._copy = PyAVSource(copy_frames(frames, block))
        except (OSError, av.error.FFmpegError, VideoError) as error:
            logger.info("%s: read backwards without a copy: %s", self.path, error)
        else:
            self._copied = range(start, first + block)

    def _remove_copy(self) -> None:
        if self._copy is not None:
            self._copy.close()
            os.unlink(self._copy.path)
        self._copy, self._copied = None, range(0)

    def _decode(self, first: int, last: int) -> None:
        if self._copy is not None and first in self._copied and last in self._copied:
            start = self._copied.start
            for number, frame in self._copy.decode(first - start, last - start):
                self._cache[number + start] = frame
            return
        source = self._opened()
        try:
            self._cache.update(source.decode(first, last))
        except VideoError as error:
            if not isinstance(source, DecordSource):
                raise
            # PyAV knows which frames are good.
            logger.warning("%s: going on with PyAV: %s", self.path, error)
            source.close()
            assert self._pyav is not None
            self._source = self._pyav
            self._cache.update(self._pyav.decode(first, last))

    def _opened(self) -> FrameSource:
        if self._source is None:
            assert self._pyav is not None
            self._source = self._choose(self._pyav, forced=False)
        return self._source

    def _choose(self, pyav: PyAVSource, *, forced: bool) -> FrameSource:
        """Chooses the backend of a file, and logs the choice."""
        try:
            if not forced and len(self) * self.height * self.width * 3 > DECORD_BYTES:
                raise DecordUnfit("it would hold too many decoded frames in memory")
            source = DecordSource(self.path, pyav.index)
        except DecordUnfit as unfit:
            if forced:
                pyav.close()
                raise VideoError(
                    self.path, f"decord cannot be used: {unfit}; use the backend pyav"
                ) from None
            logger.debug("%s: decoded by PyAV, not decord: %s", self.path, unfit)
            return pyav
        logger.debug("%s: decoded by decord", self.path)
        pyav.close()
        return source

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def read(self, indices: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Reads many frames in one pass, in whatever order they are asked for.

        Args:
            indices: 0-based frame numbers; doubles are read once.

        Yields:
            (index, frame) in ascending order of index.

        Raises:
            IndexError: If there is no such frame.
            VideoError: If a frame cannot be decoded.
        """
        count = len(self)
        for index in sorted(
            {index + count if index < 0 else index for index in indices}
        ):
            yield index, self[index]

    def close(self) -> None:
        """Releases the file and all frames; closing twice is fine."""
        with self._lock:
            self._closed = True
            for source in (self._source, self._pyav):
                if source is not None:
                    source.close()
            self._remove_copy()
            self._cache.clear()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metadata(
    path: str | os.PathLike[str], *, fps: float | None = None
) -> VideoMetadata:
    """Reads the metadata of a video file or an image folder, without ffprobe.

    A file that was opened before in this process and has not changed is not read again.

    Args:
        path: Path of the file or folder.
        fps: Frames per second of an image folder.

    Raises:
        VideoError: As :class:`VideoReader`.
    """
    with VideoReader(path, fps=fps, cache_frames=1) as reader:
        return reader.metadata


def _backend(backend: str | None) -> Backend:
    chosen = backend or os.environ.get(BACKEND_VARIABLE) or "pyav"
    if chosen not in get_args(Backend):
        raise ValueError(
            f"{chosen!r} is not a backend of videos; there are: "
            + ", ".join(get_args(Backend))
        )
    return cast(Backend, chosen)
