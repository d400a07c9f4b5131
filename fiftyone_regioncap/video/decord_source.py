"""Frames of video files through decord, for files where it is provably right.

decord numbers frames by counting what its decoder gives, and conceals damage. It is
therefore used only where the file's index leaves no doubt about the count (see
:func:`fiftyone_regioncap.video.index.decord_obstacle`), where its own index agrees with
ours, and where its first frame is ours to the bit; and it is given up as soon as its
decoder reports an error. The errors of FFmpeg's libraries inside decord are only seen
in their log, so without access to that log decord is not used.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.video.index import VideoIndex

_AV_LOG_ERROR = 16
_TIME_TOLERANCE = 1e-6  # of the time, which decord states in single precision


class DecordUnfit(Exception):
    """Raised when decord is not available or not exact; the message says why."""


class DecordSource:
    """The frames of a video file through decord.

    Args:
        path: Path of the file.
        index: Index of the file's packets, and its metadata.

    Raises:
        DecordUnfit: If decord is not installed, or cannot be proven right for the file.
    """

    def __init__(self, path: str, index: VideoIndex) -> None:
        if index.decord_obstacle is not None:
            raise DecordUnfit(index.decord_obstacle)
        decord, self._log = _decord()
        self._path = path
        self._errors = (decord.DECORDError, RuntimeError)
        count = len(index.timeline.times)
        try:
            self._reader = decord.VideoReader(path, num_threads=0)
            times = self._reader.get_frame_timestamp(range(count))[:, 0]
            self._first: Frame | None = self._read(0)
        except (VideoError, IndexError, *self._errors) as error:
            raise DecordUnfit(f"it fails: {error}") from None
        if len(self._reader) != count or not np.allclose(
            times, index.timeline.times, rtol=_TIME_TOLERANCE, atol=1e-4
        ):
            raise DecordUnfit("its index is not that of the container")
        if zlib.crc32(np.ascontiguousarray(self._first).data) != index.first_checksum:
            raise DecordUnfit("its first frame is another")

    def _read(self, number: int) -> Frame:
        errors = self._log.errors
        try:
            frame = self._reader[number]
        except self._errors as error:
            raise VideoError(self._path, f"decord fails: {error}") from None
        if self._log.errors > errors:
            raise VideoError(self._path, f"decord reports: {self._log.last}")
        # A bridge that the process has set gives tensors instead of decord's arrays.
        return frame.asnumpy() if hasattr(frame, "asnumpy") else np.asarray(frame)

    def decode(self, first: int, last: int) -> Iterator[tuple[int, Frame]]:
        """See :meth:`FrameSource.decode`."""
        for number in range(first, last + 1):
            # decord stands behind the first frame, so that it is not read again.
            kept, self._first = self._first, None
            if number > 0 or kept is None:
                kept = self._read(number)
            yield number, kept

    def close(self) -> None:
        """Releases the file and the decoder."""
        self._reader = None


class _DecoderLog:
    """Counts the errors that FFmpeg's libraries inside decord log.

    Args:
        avutil: Decord's own libavutil.
    """

    def __init__(self, avutil: ctypes.CDLL) -> None:
        self.errors = 0
        self.last = ""
        arguments = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._callback = ctypes.CFUNCTYPE(None, *arguments)(self._listen)
        avutil.av_log_set_callback(self._callback)
        # Decoder threads must not call Python once the interpreter is gone.
        default = avutil.av_log_default_callback
        atexit.register(avutil.av_log_set_callback, default)

    def _listen(self, _: object, level: int, text: bytes | None, __: object) -> None:
        if level <= _AV_LOG_ERROR:
            self.errors += 1
            self.last = (text or b"").decode("utf-8", "replace").strip()


@functools.cache
def _decord() -> tuple[Any, _DecoderLog]:
    """Imports decord and listens to the log of the FFmpeg libraries inside it.

    Returns:
        The module, and the errors of all its decoders.

    Raises:
        DecordUnfit: If it is not installed, or its log cannot be read.
    """
    try:
        import decord
    except (ImportError, OSError) as error:
        raise DecordUnfit(f"it cannot be imported: {error}") from None
    if not decord.__version__.startswith("0.6."):
        # The fork decord2 hangs where a damaged file holds fewer frames than it says.
        raise DecordUnfit(f"decord {decord.__version__} is not known to be exact")
    package = Path(decord.__file__).parent
    library = next(
        (
            file
            for folder in (*package.parent.glob("*decord*.libs"), package)
            for file in sorted(folder.glob("**/*avutil*"))
        ),
        None,
    )
    if library is None:
        raise DecordUnfit("its FFmpeg libraries are not found, so its log is unknown")
    return decord, _DecoderLog(ctypes.CDLL(str(library)))
