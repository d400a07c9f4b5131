from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap.errors import VideoError
from fiftyone_regioncap.video import (
    VideoReader,
    decode_ahead,
    read_metadata,
)

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
    rotation: int | None = None,
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
        if rotation is not None:
            stream.set_display_rotation(rotation)
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


COUNT = 60
PLAIN = [numbered(number) for number in range(COUNT)]

FILES: dict[str, Callable[[Path], Path]] = {
    "b_frames": lambda folder: write_video(
        folder / "b.mp4", PLAIN, bf="3", g="25", **{"x264-params": "scenecut=0"}
    ),
    "open_gop": lambda folder: write_video(
        folder / "open.mp4",
        PLAIN,
        bf="3",
        g="12",
        **{"x264-params": "open-gop=1:scenecut=0:bframes=3"},
    ),
    "gradual_refresh": lambda folder: write_video(
        folder / "refresh.mkv",
        PLAIN,
        g="12",
        bf="0",
        **{"x264-params": "intra-refresh=1:keyint=12:scenecut=0"},
    ),
    "open_gop_mpeg2_ts": lambda folder: write_video(
        folder / "open.ts", PLAIN, codec="mpeg2video", bf="2", g="12"
    ),
    "h264_ts": lambda folder: write_video(folder / "h.ts", PLAIN, bf="2", g="12"),
    "variable_rate": lambda folder: write_video(
        folder / "vfr.mp4",
        PLAIN,
        times=np.cumsum([10 + (n * 37) % 190 for n in range(COUNT)]).tolist(),
        bf="2",
        g="20",
    ),
    "late_start": lambda folder: write_video(
        folder / "late.mkv", PLAIN, times=[5000 + 40 * n for n in range(COUNT)], g="20"
    ),
    "vp8_hidden_frames": lambda folder: write_video(
        folder / "v8.webm",
        PLAIN,
        codec="libvpx",
        g="20",
        **{"auto-alt-ref": "1", "lag-in-frames": "16", "b": "500k"},
    ),
    "vp9_superframes": lambda folder: write_video(
        folder / "v9.webm",
        PLAIN,
        codec="libvpx-vp9",
        g="20",
        **{"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "b": "500k"},
    ),
    "avi_without_time_stamps": lambda folder: write_video(
        folder / "x.avi", PLAIN, codec="mpeg4", bf="2", g="12", b="800k"
    ),
    "avi_h264": lambda folder: write_video(folder / "h.avi", PLAIN, bf="2", g="12"),
    "raw_stream": lambda folder: write_video(folder / "raw.h264", PLAIN, bf="2", g="9"),
    "every_frame_a_key": lambda folder: write_video(
        folder / "m.mov", PLAIN, codec="mjpeg", pixels="yuvj420p", b="4M"
    ),
    "fragmented": lambda folder: write_video(
        folder / "f.mp4",
        PLAIN,
        bf="2",
        g="12",
        container_options={"movflags": "frag_keyframe+empty_moov"},
    ),
    "with_sound": lambda folder: write_video(folder / "s.mp4", PLAIN, audio=True),
    "hevc": lambda folder: write_video(
        folder / "hevc.mp4",
        PLAIN,
        codec="libx265",
        **{"x265-params": "open-gop=1:keyint=12:bframes=3:log-level=none"},
    ),
    "one_frame": lambda folder: write_video(folder / "one.mp4", PLAIN[:1]),
}


@pytest.fixture(scope="module", params=sorted(FILES))
def video(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    return FILES[request.param](tmp_path_factory.mktemp(request.param))


def orders(count: int) -> dict[str, list[int]]:
    return {
        "forward": list(range(count)),
        "backward": list(range(count))[::-1],
        "random": np.random.default_rng(1).permutation(count)[:25].tolist(),
        "strides": list(range(0, count, 7)) + list(range(count - 1, -1, -9)),
    }


@pytest.mark.parametrize("order", sorted(orders(1)))
@pytest.mark.parametrize("cache_frames", [1, 8])
def test_frames_are_exact_in_any_order(
    video: Path, order: str, cache_frames: int
) -> None:
    with VideoReader(video, cache_frames=cache_frames) as reader:
        expected = 1 if video.name == "one.mp4" else COUNT
        assert len(reader) == expected
        for index in orders(expected)[order]:
            assert number_of(reader[index]) == index


def test_every_way_to_a_frame_gives_the_same_pixels(video: Path) -> None:
    with VideoReader(video) as reader:
        in_order = [frame.copy() for frame in reader]
    with VideoReader(video, cache_frames=1) as reader:
        for index in orders(len(in_order))["random"]:
            assert np.array_equal(reader[index], in_order[index])


def test_read_gives_each_frame_once_in_order(video: Path) -> None:
    with VideoReader(video) as reader:
        wanted = [5, 0, 40, 5, 39] if len(reader) > 1 else [0, 0]
        got = [(index, number_of(frame)) for index, frame in reader.read(wanted)]
    assert got == [(index, index) for index in sorted(set(wanted))]
