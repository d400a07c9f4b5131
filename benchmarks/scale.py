"""Measures what sharing a job among many workers costs, and plans large jobs.

``standins``: workers with real leases on a real database, whose "GPU" sleeps for a time
per video that varies a lot. Utilization is busy time over workers times wall time, from
the first claim to the last result, the tail included.

``writes``: frames with labels written a second by 1, 4 and 16 processes, with the fence
of a lease and without.

``plan``: a simulation with measured constants of what a database must carry.

    python -m benchmarks.scale standins --workers 2 8 --videos 120
    python -m benchmarks.scale writes
    python -m benchmarks.scale plan --gpus 1000 --videos 1000000
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from uuid import uuid4

import numpy as np

from fiftyone_regioncap.system.database import ensure

ensure()

import fiftyone as fo  # noqa: E402  (reads the database's address when imported)

from fiftyone_regioncap.core.types import FrameMasks, ObjectMask  # noqa: E402
from fiftyone_regioncap.dataset.leases import Leases  # noqa: E402
from fiftyone_regioncap.dataset.schema import (  # noqa: E402
    declare_status,
    declare_tracks,
)
from fiftyone_regioncap.dataset.targets import Target, Targets  # noqa: E402
from fiftyone_regioncap.dataset.tracks import TrackWriter  # noqa: E402
from fiftyone_regioncap.jobs.base import Job, RunContext, SampleStage  # noqa: E402
from fiftyone_regioncap.jobs.board import Run  # noqa: E402
from fiftyone_regioncap.jobs.executors.working import Prepared, Worker  # noqa: E402
from fiftyone_regioncap.jobs.options import PropagateOptions  # noqa: E402
from fiftyone_regioncap.jobs.summary import Summary  # noqa: E402

SPAWN = multiprocessing.get_context("spawn")


class StandIn(SampleStage[PropagateOptions]):
    """A stage that waits as a GPU would."""

    name = "propagate"
    summary = Summary

    def __init__(self, lengths: dict[str, float]) -> None:
        super().__init__(PropagateOptions())
        self._lengths = lengths
        self.busy = 0.0

    def record(self) -> dict[str, Any]:
        """Returns nothing: there is no model."""
        return {}

    def process(self, target: Target, sample: Any, context: RunContext) -> bool:
        """Waits for as long as the video would take."""
        seconds = self._lengths[target.sample_id]
        time.sleep(seconds)
        self.busy += seconds
        return True


def _work(
    name: str, lengths: dict[str, float], run: tuple, barrier: Any, results: Any
) -> None:
    dataset = fo.load_dataset(name)
    stage = StandIn(lengths)
    ordered = sorted(lengths, key=lambda sample_id: -lengths[sample_id])
    targets = Targets(dataset, tuple(map(Target, ordered)))
    job = Job("standin", name, None, ())
    prepared = Prepared(job, [stage], targets, [], dataset)
    context = prepared.context(None, None)
    worker = Worker(prepared, Run(*run), context, uuid4().hex, f"board.w{os.getpid()}")
    barrier.wait()
    began = time.time()
    worker.work()
    results.put((began, time.time(), stage.busy))


def standins(workers: list[int], videos: int, seconds: float) -> None:
    """Prints the utilization of stand-in GPUs."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(0.0, 0.8, videos)
    lengths *= seconds / lengths.mean()
    dataset = fo.Dataset(f"scale-{uuid4().hex[:6]}")
    dataset.media_type = "image"  # no files are read
    dataset.add_samples(
        [fo.Sample(filepath=f"/nowhere/{n}.png") for n in range(videos)]
    )
    declare_status(dataset, "tracks")
    ids = dataset.values("id")
    print("| workers | wall s | ideal s | utilization | ms a sample beside it |")
    print("|---|---|---|---|---|")
    for number in workers:
        known = dict(zip(ids, lengths.tolist(), strict=True))
        run = Run.begin("standin", dataset.name, dataset._doc.id, ["tracks"], "a")
        barrier, results = SPAWN.Barrier(number), SPAWN.Queue()
        facts = (run.id, run.group, run.dataset_id, run.fields, run.signature)
        processes = [
            SPAWN.Process(
                target=_work, args=(dataset.name, known, facts, barrier, results)
            )
            for _ in range(number)
        ]
        for process in processes:
            process.start()
        found = [results.get() for _ in processes]
        for process in processes:
            process.join()
        run.end("done")
        began, ended = min(f[0] for f in found), max(f[1] for f in found)
        busy, wall = sum(f[2] for f in found), ended - began
        assert abs(busy - lengths.sum()) < 1e-6, "each video exactly once"
        ideal = max(lengths.sum() / number, lengths.max())
        beside = (wall - ideal) * number / videos * 1000
        print(
            f"| {number} | {wall:.1f} | {ideal:.1f} | {busy / number / wall:.3f} | "
            f"{beside:.0f} |"
        )
    dataset.delete()


def _masks(frames: int) -> Iterator[FrameMasks]:
    rows, columns = np.ogrid[:240, :320]
    discs = [(columns - 40 * k - 60) ** 2 + (rows - 90) ** 2 < 900 for k in range(3)]
    masks = {k + 1: ObjectMask(disc, 0.9) for k, disc in enumerate(discs)}
    for frame in range(frames):
        yield FrameMasks(frame, masks)


def _write(
    name: str, sample_id: str, frames: int, fence: bool, barrier: Any, results: Any
) -> None:
    dataset = fo.load_dataset(name)
    sample = dataset[sample_id]
    leases = Leases(dataset._doc.id, ["tracks"], "a") if fence else nullcontext()
    with leases:
        if isinstance(leases, Leases):
            assert leases.claim(sample_id) is None
        barrier.wait()
        began = time.time()
        with TrackWriter(sample, "tracks") as writer:
            for masks in _masks(frames):
                writer.write(masks)
        results.put((began, time.time()))


def writes(writers: list[int], frames: int) -> None:
    """Prints the frames that are written a second."""
    print("| writers | fence | frames/s |")
    print("|---|---|---|")
    for number in writers:
        for fence in (True, False):
            dataset = fo.Dataset(f"scale-{uuid4().hex[:6]}")
            dataset.media_type = "video"
            metadata = fo.VideoMetadata(
                frame_width=320,
                frame_height=240,
                frame_rate=10.0,
                total_frame_count=frames,
            )
            samples = [
                fo.Sample(filepath=f"/nowhere/{n}.mp4", metadata=metadata)
                for n in range(number)
            ]
            dataset.add_samples(samples)
            declare_tracks(dataset, "tracks")
            barrier, results = SPAWN.Barrier(number), SPAWN.Queue()
            processes = [
                SPAWN.Process(
                    target=_write,
                    args=(dataset.name, sample_id, frames, fence, barrier, results),
                )
                for sample_id in dataset.values("id")
            ]
            for process in processes:
                process.start()
            found = [results.get() for _ in processes]
            for process in processes:
                process.join()
            seconds = max(f[1] for f in found) - min(f[0] for f in found)
            print(f"| {number} | {fence} | {number * frames / seconds:.0f} |")
            dataset.delete()


def plan(
    gpus: int,
    videos: int,
    *,
    seconds: float,
    per_frame: float,
    objects: int,
    mask_bytes: int,
) -> None:
    """Prints what a job of videos at 24 frames a second asks of the database.

    Args:
        gpus: Number of GPUs that propagate.
        videos: Number of videos.
        seconds: Median length of a video; lengths are lognormal with a sigma of 0.8.
        per_frame: Seconds that a GPU takes for a frame.
        objects: Objects a video.
        mask_bytes: Bytes that the mask of an object takes on a frame.
    """
    rng = np.random.default_rng(0)
    work = rng.lognormal(np.log(seconds), 0.8, videos) * 24 * per_frame
    for order, lengths in (
        ("as they come", work),
        ("longest first", np.sort(work)[::-1]),
    ):
        free = [0.0] * gpus
        for length in lengths:
            heapq.heapreplace(free, free[0] + length)
        wall = max(free)
        print(
            f"{order}: {wall / 3600:.2f} h, utilization {work.sum() / gpus / wall:.3f}"
        )
    frames = work.sum() / per_frame
    rate = frames / wall
    print(
        f"{frames / 1e6:.0f} million frames, {rate:.0f} a second in {rate / 64:.0f} "
        f"writes, {rate * objects * mask_bytes / 1e6:.0f} MB/s, "
        f"{frames * objects * mask_bytes / 1e12:.1f} TB; "
        f"{videos / wall:.0f} claims and {gpus / 2:.0f} renewals a second"
    )


def main() -> None:
    """Reads the arguments and runs one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("standins")
    one.add_argument("--workers", type=int, nargs="+", default=[2, 8])
    one.add_argument("--videos", type=int, default=120)
    one.add_argument("--seconds", type=float, default=1.0, help="mean of a video")
    two = kinds.add_parser("writes")
    two.add_argument("--writers", type=int, nargs="+", default=[1, 4])
    two.add_argument("--frames", type=int, default=640)
    three = kinds.add_parser("plan")
    three.add_argument("--gpus", type=int, default=1000)
    three.add_argument("--videos", type=int, default=1_000_000)
    three.add_argument("--seconds", type=float, default=30.0)
    three.add_argument("--per-frame", type=float, default=0.025)
    three.add_argument("--objects", type=int, default=3)
    three.add_argument("--mask-bytes", type=int, default=2000)
    values = vars(parser.parse_args())
    kind = values.pop("kind")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    {"standins": standins, "writes": writes, "plan": plan}[kind](**values)


if __name__ == "__main__":
    main()
