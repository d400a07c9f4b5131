"""Measures the reading of frames by PyAV and decord, through our reader and alone.

One command, one table: opening a file, reading it in order, and reading frames at
random, for the real clips of ``$REGIONCAP_CLIPS`` or for the files that are named.

    python benchmarks/reading.py
    python benchmarks/reading.py --runs 5 video.mp4

``pyav`` and ``decord`` are our reader with that backend, and ``auto`` with the one it
chooses; they give the same pixels, which is checked. ``decord alone`` and
``torchcodec`` are the libraries as they come, which look up frames by their own index.
The methods take turns in each round, and the best round counts. ``opened again`` is a
file that the process has opened before; ``x`` is the speed relative to ``pyav``. On a
busy machine, ``--cpu`` compares the processor time of all threads instead.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.video import index as video_index
from fiftyone_regioncap.video.reader import Backend, VideoReader
from tests.support import SHARED

RANDOM_FRAMES = 20

Open = Callable[[str], Any]
"""Opens a file for ``len(...)`` and ``[number]``; the frame is an array."""


def ours(backend: Backend) -> Open:
    """Opens our reader with a backend; it starts its decoder when it is opened."""

    def opened(path: str) -> VideoReader:
        reader = VideoReader(path, backend=backend, cache_frames=1)
        reader.backend  # noqa: B018  (chooses the decoder)
        return reader

    return opened


def methods() -> dict[str, Open]:
    """Returns the methods that can be imported here."""
    found: dict[str, Open] = {name: ours(name) for name in ("pyav", "decord", "auto")}
    try:
        import decord

        class Alone(decord.VideoReader):
            def __getitem__(self, number: int) -> np.ndarray:
                return super().__getitem__(number).asnumpy()

        found["decord alone"] = lambda path: Alone(path, num_threads=0)
    except ImportError as error:
        print(f"decord: {error}")
    try:
        from torchcodec.decoders import VideoDecoder

        found["torchcodec"] = lambda path: VideoDecoder(path, dimension_order="NHWC")
    except (ImportError, OSError, RuntimeError) as error:
        print(f"torchcodec: {str(error).splitlines()[0]}")
    return found


def measure(opened: Open, path: str, clock: Callable[[], float]) -> dict[str, float]:
    """Times one method on one file.

    Args:
        opened: Function that opens a file with the measured method.
        path: Path of the file.
        clock: Function that returns the time in seconds.

    Returns:
        Milliseconds: per opening, per frame in order, and per frame at random.
    """
    times = {}
    reader = None
    for what in ("open", "opened again"):
        if what == "open":
            video_index._cache.clear()
        del reader  # closes it before the clock starts
        begin = clock()
        reader = opened(path)
        np.asarray(reader[0])
        times[what] = clock() - begin
    count = len(reader)
    begin = clock()
    for number in range(count):
        np.asarray(reader[number])
    times["in order"] = (clock() - begin) / count
    elsewhere = np.random.default_rng(0).integers(count, size=RANDOM_FRAMES).tolist()
    begin = clock()
    for number in elsewhere:
        np.asarray(reader[number])
    times["at random"] = (clock() - begin) / RANDOM_FRAMES
    return {what: 1000 * seconds for what, seconds in times.items()}


def differences(path: str) -> int:
    """Returns the number of frames on which our backends differ."""
    with VideoReader(path) as auto, VideoReader(path, backend="pyav") as pyav:
        return sum(not np.array_equal(a, b) for a, b in zip(auto, pyav, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one table for each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--cpu", action="store_true", help="compare processor time")
    parser.add_argument("--runs", type=int, default=3, help="rounds; the best counts")
    options = parser.parse_args(arguments)
    clips = Path(os.environ.get("REGIONCAP_CLIPS", SHARED / "clips"))
    files = options.files or sorted(clips.glob("**/*.mp4"))
    clock = time.process_time if options.cpu else time.perf_counter
    found = methods()
    for file in map(str, files):
        with VideoReader(file) as reader:
            print(
                f"\n{Path(*Path(file).parts[-2:])}: {len(reader)} frames, "
                f"{reader.width}x{reader.height}, auto is {reader.backend}, "
                f"{differences(file)} frames differ"
            )
        best: dict[str, dict[str, float]] = {}
        for _ in range(options.runs):
            for name, opened in found.items():
                try:
                    now = measure(opened, file, clock)
                except VideoError as error:
                    print(f"{name}: {error}")
                    continue
                before = best.setdefault(name, now)
                best[name] = {what: min(before[what], now[what]) for what in now}
        print(f"{'ms':14s}" + "".join(f"{what:>20s}" for what in best["pyav"]))
        for name, times in best.items():
            cells = (
                f"{time:11.2f} ({best['pyav'][what] / time:4.1f} x)"
                for what, time in times.items()
            )
            print(f"{name:14s}" + "".join(f"{cell:>20s}" for cell in cells))


if __name__ == "__main__":
    main()
