"""Measures the speed of exports, and their memory over the number of videos.

Writes synthetic videos into datasets of growing size and exports each in a process of
its own, whose peak memory is its own too. Media are left out: only labels are measured.
Needs a database (the one of ``FIFTYONE_DATABASE_URI``, or FiftyOne's own); the datasets
are deleted afterwards.

    python -m benchmarks.export --videos 10 100 1000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fiftyone_regioncap.system.database import ensure

ensure()

import fiftyone as fo  # noqa: E402  (reads the database's address when imported)

from fiftyone_regioncap.core.types import FrameMasks, ObjectMask  # noqa: E402
from fiftyone_regioncap.dataset.captions import (  # noqa: E402
    CaptionRecord,
    write_captions,
)
from fiftyone_regioncap.dataset.tracks import TrackWriter  # noqa: E402

EXPORT = """
import json, resource, sys, time
from fiftyone_regioncap import api, exporters
import fiftyone as fo

dataset = fo.load_dataset(sys.argv[1])
def peak():  # of this process or of one of its workers
    return max(
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
before = peak()
start = time.perf_counter()
done = api.export(
    dataset,
    sys.argv[2],
    sys.argv[3],
    media="none",
    progress=False,
    workers=int(sys.argv[4]),
)
seconds = time.perf_counter() - start
assert done.ok, done.failures
print(json.dumps([done.counts["masks"], seconds, before, peak()]))
"""


def rounds(objects: int, height: int, width: int) -> list[dict[int, ObjectMask]]:
    """Discs of a fifth of the frame's height that go round and round."""
    rows, columns = np.ogrid[:height, :width]
    radius = height / 10
    found = []
    for step in range(50):
        masks = {}
        for number in range(objects):
            angle = 2 * np.pi * (step / 50 + number / objects)
            x = width * (0.5 + 0.35 * np.cos(angle))
            y = height * (0.5 + 0.35 * np.sin(angle))
            disc = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
            masks[number + 1] = ObjectMask(disc, 0.9)
        found.append(masks)
    return found


def fill(dataset: fo.Dataset, videos: int, options: argparse.Namespace) -> None:
    """Adds videos until there are so many: one is written, the others are copies."""
    metadata = fo.VideoMetadata(
        frame_width=options.width,
        frame_height=options.height,
        frame_rate=25.0,
        total_frame_count=options.frames,
    )

    def sample(number: int) -> fo.Sample:
        return fo.Sample(filepath=f"/videos/{number:06d}.mp4", metadata=metadata)

    if not len(dataset):
        first = sample(0)
        dataset.add_sample(first)
        turning = rounds(options.objects, options.height, options.width)
        with TrackWriter(first, "frames.tracks") as writer:
            for frame in range(options.frames):
                writer.write(FrameMasks(frame, turning[frame % len(turning)]))
        records = [
            CaptionRecord(n + 1, (0, options.frames - 1), "disc", "A disc goes round.")
            for n in range(options.objects)
        ]
        write_captions(first, "captions", records)
    frames = list(
        dataset._frame_collection.find({"_sample_id": dataset.first()._id}, {"_id": 0})
    )
    captions = dataset.first()["captions"]
    for number in range(len(dataset), videos):
        copy = sample(number)
        copy["captions"] = captions
        dataset.add_sample(copy)
        dataset._frame_collection.insert_many(
            [{**frame, "_sample_id": copy._id} for frame in frames]
        )


def measure(
    dataset: fo.Dataset, videos: list[int], options: argparse.Namespace
) -> Iterator[tuple[str, int, int, float, float, float]]:
    """Exports the dataset while it grows."""
    for count in videos:
        fill(dataset, count, options)
        for name in options.formats:
            with tempfile.TemporaryDirectory() as folder:
                out = str(Path(folder, "out"))
                arguments = [dataset.name, name, out, str(options.workers)]
                process = subprocess.run(
                    [sys.executable, "-c", EXPORT, *arguments],
                    check=True,
                    capture_output=True,
                    text=True,
                )
            masks, seconds, before, after = json.loads(process.stdout.splitlines()[-1])
            yield name, count, masks, seconds, before, after


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--objects", type=int, default=5)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=854)
    parser.add_argument("--formats", nargs="+", default=["coco", "youtube-vis"])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    print(
        f"videos of {options.frames} frames x {options.objects} tracks, "
        f"{options.width}x{options.height}, {options.workers} workers, no media\n"
    )
    print("| format | videos | masks | seconds | masks/s | MiB before | MiB at peak |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    dataset = fo.Dataset()
    try:
        rows = measure(dataset, sorted(options.videos), options)
        for name, count, masks, seconds, before, after in rows:
            print(
                f"| {name} | {count} | {masks} | {seconds:.1f} "
                f"| {masks / seconds:.0f} | {before:.0f} | {after:.0f} |",
                flush=True,
            )
    finally:
        dataset.delete()


if __name__ == "__main__":
    main()
