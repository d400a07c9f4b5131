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
from pathlib import Path

from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.system.leftovers import remove_leftovers
from fiftyone_regioncap.video.encoding import encode_video

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
    prefix = remove_leftovers(Path(tempfile.gettempdir()), "regioncap-", ".mkv")
    handle, path = tempfile.mkstemp(prefix=f"{prefix}-", suffix=".mkv")
    os.close(handle)
    try:
        pictures = (frame for _, frame in frames)
        encode_video(pictures, path, _RATE, lossless=True, key_distance=distance)
    except BaseException:
        os.unlink(path)
        raise
    return path
