"""Copies stretches of videos so that they can be read backwards.

Decoding only goes forward, from a key frame. Where these are very far apart, or can't
be found, reading backwards in blocks would decode the same frames again for each block,
at a cost that grows with the square of the length. A copy with a key frame for every
block is made instead, once: without loss, in a temporary file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from fractions import Fraction

import av

from fiftyone_regioncap.core.types import Frame

LONGEST_COPY = 4096
"""Number of frames that are copied at once; some 4 GB at 1920 x 1080."""

_RATE = 25  # any


def copy_frames(frames: Iterable[tuple[int, Frame]], distance: int) -> str:
    """Writes frames to a temporary video file, from which they come back to the bit.

    Args:
        frames: Frames with their numbers; all of one size.
        distance: Number of frames from one key frame to the next.

    Returns:
        The path; the caller removes the file.

    Raises:
        OSError: When there is no room.
    """
    handle, path = tempfile.mkstemp(prefix="regioncap-", suffix=".mkv")
    os.close(handle)
    try:
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264rgb", rate=Fraction(_RATE))
            stream.pix_fmt = "rgb24"
            stream.gop_size, stream.max_b_frames = distance, 0
            stream.options = {"qp": "0", "preset": "ultrafast"}
            for rank, (_, frame) in enumerate(frames):
                if rank == 0:
                    stream.height, stream.width = frame.shape[:2]
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    except BaseException:
        os.unlink(path)
        raise
    return path
