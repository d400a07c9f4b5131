"""Measures what sharing a job among many workers costs, and plans large jobs.

``standins``: workers with real leases on a real database, whose "GPU" sleeps for a time
per video that varies a lot. Utilization is busy time over workers times wall time, from
the first claim to the last result, the tail included. Workers are threads of a few
processes, as they wait nearly all of the time and each process takes 300 MB.

``clips``: real clips, propagated and captioned in this process, by processes and on
Ray, with what a sample takes; ``tiny`` does so with videos of three frames, where next
to nothing but the machinery is left.

``cancel``: seconds from asking such a job to stop, as another process would, until all
of its workers have ended.

``writes``: frames with labels written a second by 1, 4 and 16 processes, with the fence
of a lease and without.

``plan``: a simulation with measured constants of what a database must carry.

    python -m benchmarks.scale standins --workers 2 8 32
    python -m benchmarks.scale clips --executors local processes:1 processes:2 ray:1
    python -m benchmarks.scale tiny --executors local ray:1
    python -m benchmarks.scale cancel --executors local processes:2 ray:2
    python -m benchmarks.scale writes
    python -m benchmarks.scale plan --gpus 1000 --videos 1000000
"""

from __future__ import annotations

import argparse
import heapq
import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from fiftyone_regioncap.system.database import ensure

ensure()

import av  # noqa: E402
import fiftyone as fo  # noqa: E402  (reads the database's address when imported)

from fiftyone_regioncap import api  # noqa: E402
from fiftyone_regioncap.core.errors import Canceled  # noqa: E402
from fiftyone_regioncap.core.progress import ProgressEvent  # noqa: E402
from fiftyone_regioncap.core.types import (  # noqa: E402
    FrameMasks,
    ObjectMask,
    Prompt,
)
from fiftyone_regioncap.dataset import videos as datasets  # noqa: E402
from fiftyone_regioncap.dataset.leases import Leases  # noqa: E402
from fiftyone_regioncap.dataset.schema import (  # noqa: E402
    declare_status,
    declare_tracks,
)
from fiftyone_regioncap.dataset.targets import Target, Targets  # noqa: E402
from fiftyone_regioncap.dataset.tracks import TrackWriter  # noqa: E402
from fiftyone_regioncap.jobs import board  # noqa: E402
from fiftyone_regioncap.jobs.base import Job, RunContext, SampleStage  # noqa: E402
from fiftyone_regioncap.jobs.executors import working  # noqa: E402
from fiftyone_regioncap.jobs.executors.working import Prepared, Worker  # noqa: E402
from fiftyone_regioncap.jobs.options import PropagateOptions  # noqa: E402
from fiftyone_regioncap.jobs.summary import Summary  # noqa: E402
from fiftyone_regioncap.system import assets  # noqa: E402
from tests.support import SHARED  # noqa: E402

SPAWN = multiprocessing.get_context("spawn")

THREADS = 8
"""Stand-in workers of one process."""

DONE = ": done"
"""End of the message of a sample that is done."""


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
    name: str,
    lengths: dict[str, float],
    run: tuple[Any, ...],
    workers: int,
    barrier: Any,
    results: Any,
) -> None:
    """Runs some workers in the threads of a process."""
    dataset = fo.load_dataset(name)
    ordered = sorted(lengths, key=lambda sample_id: -lengths[sample_id])
    targets = Targets(dataset, tuple(map(Target, ordered)))
    job = Job("standin", name, None, ())
    stages = [StandIn(lengths) for _ in range(workers)]

    def work(number: int) -> None:
        prepared = Prepared(job, [stages[number]], targets, [], dataset)
        context = prepared.context(None, None)
        place = f"board.w{os.getpid()}_{number}.progress"
        Worker(prepared, board.Run(*run), context, uuid4().hex, place).work()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
    barrier.wait()
    began = time.time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((began, time.time(), sum(stage.busy for stage in stages)))


def standins(workers: list[int], videos: int, seconds: float) -> None:
    """Prints the utilization of stand-in GPUs.

    Args:
        workers: Numbers of workers.
        videos: Number of videos for each worker.
        seconds: Mean time that a video takes; times are lognormal with a sigma of 0.8.
    """
    print(
        "| workers | videos | wall s | ideal s | utilization | ms a sample beside it |"
    )
    print("|---|---|---|---|---|---|")
    for number in workers:
        rng = np.random.default_rng(0)
        total = videos * number
        lengths = rng.lognormal(0.0, 0.8, total)
        lengths *= seconds / lengths.mean()
        dataset = fo.Dataset(f"scale-{uuid4().hex[:6]}")
        dataset.add_samples(
            [fo.Sample(filepath=f"/nowhere/{n}.mp4") for n in range(total)]
        )
        declare_status(dataset, "tracks")
        known = dict(zip(dataset.values("id"), lengths.tolist(), strict=True))
        run = board.Run.begin("standin", dataset.name, dataset._doc.id, ["tracks"], "a")
        shares = [min(THREADS, number - n) for n in range(0, number, THREADS)]
        barrier, results = SPAWN.Barrier(len(shares)), SPAWN.Queue()
        facts = (run.id, run.group, run.dataset_id, run.fields, run.signature)
        processes = [
            SPAWN.Process(
                target=_work,
                args=(dataset.name, known, facts, share, barrier, results),
            )
            for share in shares
        ]
        for process in processes:
            process.start()
        found = [results.get() for _ in processes]
        for process in processes:
            process.join()
        run.end("done")
        dataset.delete()
        began, ended = min(f[0] for f in found), max(f[1] for f in found)
        busy, wall = sum(f[2] for f in found), ended - began
        assert abs(busy - lengths.sum()) < 1e-6, "each video exactly once"
        ideal = max(lengths.sum() / number, lengths.max())
        beside = (wall - ideal) * number / total * 1000
        print(
            f"| {number} | {total} | {wall:.1f} | {ideal:.1f} | "
            f"{busy / number / wall:.3f} | {beside:.0f} |",
            flush=True,
        )


def _tiny(folder: Path, videos: int) -> fo.Dataset:
    """Makes a dataset of videos of three small frames."""
    first = folder / "tiny.mp4"
    picture = np.full((32, 32, 3), 90, np.uint8)
    picture[8:20, 8:20] = (220, 30, 30)
    with av.open(str(first), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    paths = [folder / f"{number}.mp4" for number in range(videos)]
    for path in paths:
        path.symlink_to(first)
    return _dataset(paths, [Prompt(1, 0, box=(8, 8, 20, 20))])


def _dataset(paths: Sequence[Path], prompts: Sequence[Prompt]) -> fo.Dataset:
    name = f"scale-{uuid4().hex[:6]}"
    return datasets.add_videos(name, paths, list(prompts))[0]


def _run(dataset: fo.Dataset, where: str, progress: Any = False) -> Any:
    """Runs a job on an executor, with the number of workers behind a colon."""
    executor, _, workers = where.partition(":")
    return api.propagate_and_caption(
        dataset,
        propagator="flow",
        captioner="measured",
        executor=executor,
        overwrite=True,
        overwrite_captions=True,
        progress=progress,
        **({"workers": int(workers)} if workers else {}),
    )


class _Ends(logging.Handler):
    """Keeps when samples were done in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the time of a message that says so."""
        if record.getMessage().endswith(DONE):
            self.times.append(record.created)


def _ends(job: str) -> Iterator[list[float]]:
    """Yields when samples were done, for each worker that kept a log."""
    for path in (assets.cache_dir() / "logs" / job).glob("*.log"):
        lines = path.read_text().splitlines()
        times = [line[:23] for line in lines if line.endswith(DONE)]
        yield [
            datetime.strptime(one, "%Y-%m-%d %H:%M:%S,%f").timestamp() for one in times
        ]


def jobs(dataset: fo.Dataset, executors: Sequence[str], repeats: int) -> None:
    """Prints what a sample takes, by executor, in turn.

    Args:
        dataset: Videos with prompts.
        executors: Executors, with the number of workers behind a colon.
        repeats: Number of rounds; the median counts.
    """
    taken: dict[str, list[tuple[float, float]]] = {one: [] for one in executors}
    apart: dict[str, list[float]] = {one: [] for one in executors}
    logger, here = logging.getLogger(working.__name__), _Ends()
    logger.setLevel(logging.INFO)
    logger.addHandler(here)
    for _ in range(repeats):
        for one in executors:
            here.times.clear()
            began = time.monotonic()
            made = _run(dataset, one)
            assert made.ok, made.failures[:3]
            wall = time.monotonic() - began
            job = next(one for one in board.jobs() if one["dataset"] == dataset.name)
            parts = board.progress_of(job).values()
            rate = sum(part["sample_rate"] for part in parts)
            taken[one].append((wall, 1 / rate))
            for times in (here.times, *_ends(job["id"])):
                apart[one] += np.diff(times).tolist()
    logger.removeHandler(here)
    print(
        "| executor | wall s, its start included | ms a sample, without it | "
        "ms of a worker from sample to sample, median |"
    )
    print("|---|---|---|---|")
    for one, found in taken.items():
        wall, each = np.median(found, axis=0)
        middle = np.median(apart[one]) * 1000
        print(f"| {one} | {wall:.1f} | {each * 1000:.0f} | {middle:.0f} |")


def clips(executors: Sequence[str], repeats: int) -> None:
    """Prints what real clips take, by executor."""
    folder = Path(os.environ.get("REGIONCAP_CLIPS", SHARED / "clips"))
    paths = sorted(folder.glob("*/*.mp4")) or sorted(folder.glob("**/*.mp4"))
    dataset = _dataset(paths, [Prompt(1, 0, box=(40, 40, 160, 160))])
    jobs(dataset, executors, repeats)
    dataset.delete()


def tiny(executors: Sequence[str], repeats: int, videos: int) -> None:
    """Prints what the machinery takes for a sample, by executor."""
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    dataset = _tiny(folder, videos)
    jobs(dataset, executors, repeats)
    dataset.delete()
    shutil.rmtree(folder)


def cancel(executors: Sequence[str], repeats: int, videos: int) -> None:
    """Prints how long jobs take to end that are canceled, by executor."""
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    dataset = _tiny(folder, videos)
    print("| executor | seconds to the end, median | most |")
    print("|---|---|---|")
    for one in executors:
        taken = []
        for _ in range(repeats):
            asked: list[float] = []

            def listen(event: ProgressEvent, asked: list[float] = asked) -> None:
                if event.frames and not asked:
                    (job,) = board.jobs(1, dataset._doc.id)
                    assert board.cancel(job["id"])
                    asked.append(time.monotonic())

            try:
                _run(dataset, one, listen)
            except Canceled:
                taken.append(time.monotonic() - asked[0])
        assert len(taken) == repeats, "more videos are needed"
        print(f"| {one} | {np.median(taken):.1f} | {max(taken):.1f} |", flush=True)
    dataset.delete()
    shutil.rmtree(folder)


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


def _frames_a_second(number: int, frames: int, fence: bool) -> float:
    """Measures how many frames some processes write."""
    dataset = fo.Dataset(f"scale-{uuid4().hex[:6]}")
    dataset.media_type = "video"
    metadata = fo.VideoMetadata(
        frame_width=320, frame_height=240, frame_rate=10.0, total_frame_count=frames
    )
    samples = [
        fo.Sample(filepath=f"/nowhere/{n}.mp4", metadata=metadata)
        for n in range(number)
    ]
    dataset.add_samples(samples, progress=False)
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
    dataset.delete()
    seconds = max(f[1] for f in found) - min(f[0] for f in found)
    return number * frames / seconds


def writes(writers: list[int], frames: int, repeats: int) -> None:
    """Prints the frames that are written a second, with a lease and without in turn."""
    print("| writers | under a lease, median | without | ratio of each pair, median |")
    print("|---|---|---|---|")
    for number in writers:
        found: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(repeats):
            for fence in (turn % 2 == 0, turn % 2 == 1):  # neither is always first
                found[fence].append(_frames_a_second(number, frames, fence))
        under, free = np.array(found[True]), np.array(found[False])
        print(
            f"| {number} | {np.median(under):.0f} | {np.median(free):.0f} | "
            f"{np.median(under / free):.2f} |",
            flush=True,
        )


def plan(
    gpus: int,
    videos: int,
    *,
    seconds: float,
    per_frame: float,
    per_caption: float,
    objects: int,
    mask_bytes: int,
    server: int,
    hours_between_losses: float,
    checkpoint: float,
    loading: float,
) -> None:
    """Prints what a job asks of GPUs and of the database; each worker does all stages.

    Args:
        gpus: Number of GPUs.
        videos: Number of videos, of 24 frames a second.
        seconds: Median length of a video; lengths are lognormal with a sigma of 0.8.
        per_frame: Seconds that a GPU takes for a frame.
        per_caption: Seconds that it takes for a caption, of which there is one for each
            object.
        objects: Objects a video.
        mask_bytes: Bytes that the mask of an object takes on a frame.
        server: Frames a second that one MongoDB server takes.
        hours_between_losses: Hours of a GPU's work until it is lost, on average.
        checkpoint: Seconds between checkpoints; half of it is repeated on a loss.
        loading: Seconds that a worker takes to start and to load its models.
    """
    rng = np.random.default_rng(0)
    frames = rng.lognormal(np.log(seconds), 0.8, videos) * 24
    work = frames * per_frame + objects * per_caption
    losses = rng.poisson(work / 3600 / hours_between_losses)
    # The lease of a lost worker expires first; then another one goes on.
    repeated = losses * checkpoint / 2
    busy = work.sum()
    print("| order | hours | utilization | with losses |")
    print("|---|---|---|---|")
    for order in ("as they come", "longest first"):
        found = []
        for lengths in (work, work + repeated + losses * loading):
            rows = np.sort(lengths)[::-1] if order == "longest first" else lengths
            free = [loading] * gpus
            for length in rows.tolist():
                heapq.heapreplace(free, free[0] + length)
            found.append(max(free))
        print(
            f"| {order} | {found[0] / 3600:.2f} | {busy / gpus / found[0]:.3f} | "
            f"{busy / gpus / found[1]:.3f} |"
        )
    wall = found[1]
    rate = frames.sum() / wall
    size = frames.sum() * objects * mask_bytes
    print(
        f"{losses.sum()} losses repeat {repeated.sum() / 3600:.1f} of "
        f"{busy / 3600:.0f} GPU hours\n"
        f"{frames.sum() / 1e6:.0f} million documents of frames, {rate:.0f} a second in "
        f"{rate / 64:.0f} writes, {size / wall / 1e6:.0f} MB/s, {size / 1e12:.1f} TB: "
        f"{int(np.ceil(rate / server))} servers of {server} frames a second\n"
        f"{videos / wall:.0f} claims and {gpus / 2:.0f} renewals a second; "
        f"{videos * objects / wall:.0f} captions a second\n"
        f"{int(np.ceil(videos / 50_000))} datasets of 50,000 videos"
    )


def main() -> None:
    """Reads the arguments and runs one benchmark."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("standins")
    one.add_argument("--workers", type=int, nargs="+", default=[2, 8, 32])
    one.add_argument("--videos", type=int, default=15, help="of each worker")
    one.add_argument("--seconds", type=float, default=4.0, help="mean of a video")
    two = kinds.add_parser("writes")
    two.add_argument("--writers", type=int, nargs="+", default=[1, 4, 16])
    two.add_argument("--frames", type=int, default=2560)
    two.add_argument("--repeats", type=int, default=6)
    for name in ("clips", "tiny", "cancel"):
        three = kinds.add_parser(name)
        three.add_argument("--executors", nargs="+", default=["local", "processes:2"])
        three.add_argument("--repeats", type=int, default=3)
        if name != "clips":
            three.add_argument("--videos", type=int, default=100)
    four = kinds.add_parser("plan")
    four.add_argument("--gpus", type=int, default=1000)
    four.add_argument("--videos", type=int, default=1_000_000)
    four.add_argument("--seconds", type=float, default=30.0)
    four.add_argument("--per-frame", type=float, default=0.025)
    four.add_argument("--per-caption", type=float, default=0.5)
    four.add_argument("--objects", type=int, default=3)
    four.add_argument("--mask-bytes", type=int, default=2000)
    four.add_argument("--server", type=int, default=3000)
    four.add_argument("--hours-between-losses", type=float, default=50.0)
    four.add_argument("--checkpoint", type=float, default=20.0)
    four.add_argument("--loading", type=float, default=90.0)
    values = vars(parser.parse_args())
    kind = values.pop("kind")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    run: dict[str, Any] = {
        "standins": standins,
        "clips": clips,
        "tiny": tiny,
        "cancel": cancel,
        "writes": writes,
        "plan": plan,
    }
    run[kind](**values)


if __name__ == "__main__":
    main()
