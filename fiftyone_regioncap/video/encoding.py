"""Encodes frames as video files, frame for frame."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction

import av

from fiftyone_regioncap.core.types import Frame


def encode_video(
    frames: Iterable[Frame],
    path: str | os.PathLike[str],
    rate: float,
    *,
    lossless: bool = False,
    key_distance: int | None = None,
) -> None:
    """Encodes frames as H.264 at a constant rate.

    Args:
        frames: RGB frames, uint8 (H, W, 3), of one size; at least one.
        path: Path of the file; its suffix says which container.
        rate: Frames per second.
        lossless: Whether the frames come back to the bit, which few players show.
        key_distance: Number of frames from one key frame to the next; None leaves it to
            the encoder.

    Raises:
        OSError: When the file can't be written.
    """
    ticks = Fraction(rate).limit_denominator(1001 * 60)
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream(
            "libx264rgb" if lossless else "libx264", rate=ticks
        )
        stream.options = {"crf": "18"}
        if lossless:
            stream.options = {"qp": "0", "preset": "ultrafast", "bf": "0"}
        if key_distance is not None:
            stream.gop_size = key_distance
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
                # Half the resolution for color, as players expect, takes even sizes.
                even = stream.width % 2 == 0 and stream.height % 2 == 0
                stream.pix_fmt = "yuv420p" if even else "yuv444p"
                if lossless:
                    stream.pix_fmt = "rgb24"
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
