"""Compares our writing of tracks with saving the sample frame by frame.

Both write the same masks of the same objects into the same kind of dataset, one after
the other in turns, and the best time of each counts. Needs a database (the one of
``FIFTYONE_DATABASE_URI``, or FiftyOne's own); the datasets are deleted afterwards.

    python -m benchmarks.writes --frames 1000 --objects 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.system.database import ensure

ensure()

import fiftyone as fo  # noqa: E402  (reads the database's address when imported)

from fiftyone_regioncap.dataset.schema import declare_tracks  # noqa: E402
from fiftyone_regioncap.dataset.tracks import TrackWriter  # noqa: E402


def walk(frames: int, objects: int, height: int, width: int) -> Iterator[FrameMasks]:
    """Yields masks of discs, a fifth of the frame's height, that move in circles.

    Rounds share their masks: making masks is not what is measured, and those of all
    frames would not fit into memory.
    """
    rows, columns = np.ogrid[:height, :width]
    radius = height / 10
    rounds = []
    for step in range(min(frames, 50)):
        masks = {}
        for number in range(objects):
            angle = 2 * np.pi * (step / 50 + number / objects)
            x = width * (0.5 + 0.35 * np.cos(angle))
            y = height * (0.5 + 0.35 * np.sin(angle))
            disc = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
            masks[number + 1] = ObjectMask(disc, 0.9)
        rounds.append(masks)
    for frame in range(frames):
        yield FrameMasks(frame, rounds[frame % len(rounds)])


def ours(sample: fo.Sample, run: Iterable[FrameMasks]) -> None:
    """Writes with this package, in chunks."""
    with TrackWriter(sample, "frames.tracks") as writer:
        for frame in run:
            writer.write(frame)


def _labels(frame: FrameMasks, instances: dict[int, fo.Instance]) -> fo.Detections:
    return fo.Detections(
        detections=[
            fo.Detection.from_mask(
                item.mask,
                index=number,
                instance=instances[number],
                confidence=item.score,
                keyframe=False,
            )
            for number, item in frame.objects.items()
        ]
    )


def save_per_frame(sample: fo.Sample, run: Iterable[FrameMasks]) -> None:
    """Saves the sample after each frame."""
    instances: dict[int, fo.Instance] = {}
    for frame in run:
        for number in frame.objects:
            instances.setdefault(number, fo.Instance())
        sample.frames[frame.frame + 1]["tracks"] = _labels(frame, instances)
        sample.save()


def save_once(sample: fo.Sample, run: Iterable[FrameMasks]) -> None:
    """Saves the sample once, with all masks in memory until then."""
    instances: dict[int, fo.Instance] = {}
    for frame in run:
        for number in frame.objects:
            instances.setdefault(number, fo.Instance())
        sample.frames[frame.frame + 1]["tracks"] = _labels(frame, instances)
    sample.save()


def seconds(write: Callable[[fo.Sample], None], frames: int) -> float:
    """Times one way of writing, into a new dataset; checks that all is there."""
    dataset = fo.Dataset()
    try:
        sample = fo.Sample(filepath="/video.mp4")
        dataset.add_sample(sample)
        declare_tracks(dataset, "tracks")
        start = time.perf_counter()
        write(sample)
        elapsed = time.perf_counter() - start
        assert dataset.count("frames") == frames
        return elapsed
    finally:
        dataset.delete()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=5)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=854)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()

    run = list(walk(options.frames, options.objects, options.height, options.width))
    ways = {
        "sample.save() per frame": save_per_frame,
        "sample.save() once": save_once,
        "TrackWriter": ours,
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(options.repeats):
        for name, way in ways.items():
            taken = seconds(partial(way, run=run), options.frames)
            best[name] = min(best[name], taken)

    print(
        f"{options.frames} frames x {options.objects} objects, "
        f"{options.width}x{options.height}, best of {options.repeats}\n"
    )
    print("| way | seconds | frames/s | times as fast |")
    print("|---|---:|---:|---:|")
    slowest = best["sample.save() per frame"]
    for name, taken in best.items():
        print(
            f"| {name} | {taken:.2f} | {options.frames / taken:.0f} "
            f"| {slowest / taken:.1f} |"
        )


if __name__ == "__main__":
    main()
