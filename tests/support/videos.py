"""Small videos whose pictures carry their numbers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 10
CELL = 16


def numbered(number: int, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """A picture that carries its number as a row of black and white squares."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, 5)
        image[
            8 + row * CELL : 8 + (row + 1) * CELL,
            8 + column * CELL : 8 + (column + 1) * CELL,
        ] = 235 if number >> bit & 1 else 20
    # Something that moves, so that encoders do use references.
    x = number * 3 % (width - 20)
    image[height - 24 : height - 8, x : x + 16] = (200, 40, 40)
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, 5)
        cell = image[
            8 + row * CELL + 4 : 8 + (row + 1) * CELL - 4,
            8 + column * CELL + 4 : 8 + (column + 1) * CELL - 4,
        ]
        number |= int(cell.mean() > 128) << bit
    return number


def write_video(
    path: Path,
    images: Sequence[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    pixels: str = "yuv420p",
    audio: bool = False,
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Encodes images; times are in milliseconds, 25 frames a second when None."""
    height, width = images[0].shape[:2]
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if times is not None:
            stream.time_base = Fraction(1, 1000)
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = out.add_stream("aac", rate=16000, layout="mono") if audio else None
        for rank, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[rank], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 16000), np.float32), "fltp", "mono"
            )
            silence.sample_rate = 16000
            out.mux(sound.encode(silence))
            out.mux(sound.encode(None))
    return path


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes a display matrix into the header of an MP4 track (ISO 14496-12)."""
    a, b, c, d = (value << 16 for value in matrix)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    struct.pack_into(">9i", content, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path
