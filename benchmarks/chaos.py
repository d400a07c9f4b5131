"""Disturbs jobs at random and compares what they wrote with an undisturbed one.

In each round, one or two drivers with two workers each work on a few small videos,
while workers and drivers are killed, or stopped for longer than a lease lasts and woken
again, and a person edits captions. Afterwards all labels must be those of the
undisturbed job, edits must be kept, and no lease may be left.

    python -m benchmarks.chaos --rounds 10 --videos 8 --seed 0
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from fiftyone_regioncap.system.database import ensure

ensure()

import av  # noqa: E402
import fiftyone as fo  # noqa: E402  (reads the database's address when imported)
import numpy as np  # noqa: E402

from fiftyone_regioncap import api  # noqa: E402
from fiftyone_regioncap.core.types import Prompt  # noqa: E402
from fiftyone_regioncap.dataset import locks  # noqa: E402
from fiftyone_regioncap.dataset import videos as datasets  # noqa: E402
from tests.support.jobs import forget  # noqa: E402

LEASE = 3.0
EDIT = "An edited caption."


def write_video(path: Path, frames: int) -> None:
    """Writes a video of a square that moves."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for number in range(frames):
            picture = np.full((72, 96, 3), 90, np.uint8)
            left = 10 + number % 60
            picture[20:44, left : left + 20] = (220, 30, 30)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def labels(dataset: fo.Dataset) -> dict[str, Any]:
    """Reads all that the job writes, ids included, times and edits left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            edited = value.get("review") == "edited"
            return {
                k: plain(v)
                for k, v in value.items()
                if k not in ("_dataset_id", "caption")
                and not (edited and k in ("review", "source_caption"))
            }
        return [plain(v) for v in value] if isinstance(value, list) else value

    dataset.reload()
    return {
        sample.filepath: {
            "captions": plain(sample["captions"].to_dict()),
            "states": [sample["tracks_status"], sample["captions_status"]],
            "frames": {
                number: plain(frame["tracks"].to_dict())
                for number, frame in sample.frames.items()
                if frame.has_field("tracks") and frame["tracks"] is not None
            },
        }
        for sample in dataset
    }


def start(name: str) -> subprocess.Popen:
    """Starts a driver with two workers."""
    command = ["propagate-and-caption", "--dataset", name, "--propagator", "flow"]
    command += ["--captioner", "measured", "--executor", "processes", "--workers", "2"]
    code = "from fiftyone_regioncap.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "REGIONCAP_LEASE_SECONDS": str(LEASE)},
    )


def children(parents: list[int]) -> list[int]:
    """Returns the numbers of the workers of drivers."""
    text = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True)
    rows = [tuple(map(int, line.split())) for line in text.stdout.splitlines()[1:]]
    return [pid for pid, parent in rows if parent in parents]


def edit(dataset: fo.Dataset, rng: random.Random) -> str | None:
    """Edits a caption that is there, as the App does; returns its id."""
    found = list(
        dataset._sample_collection.find(
            {"captions.detections.0.review": "unreviewed"}, {"captions": 1}
        )
    )
    if not found:
        return None
    label = rng.choice(found)["captions"]["detections"][0]["_id"]
    changed = dataset._sample_collection.update_one(
        {"captions.detections._id": label},
        {
            "$set": {
                "captions.detections.$.caption": EDIT,
                "captions.detections.$.review": "edited",
            }
        },
    )
    return str(label) if changed.modified_count else None


def disturb(name: str, rng: random.Random, dataset: fo.Dataset) -> dict[str, int]:
    """Runs drivers until the job is done; returns what was done to them."""
    kinds = ("workers killed", "drivers killed", "workers stopped", "edited")
    done = dict.fromkeys(kinds, 0)
    edits: list[str] = []
    drivers = [start(name) for _ in range(rng.choice((1, 1, 2)))]
    while any(driver.poll() is None for driver in drivers):
        time.sleep(rng.uniform(0.2, 2))
        alive = [driver.pid for driver in drivers if driver.poll() is None]
        workers = children(alive)
        if not alive:
            break
        if not locks.collection("leases").count_documents({}):
            continue  # nobody is at work yet
        what = rng.choices(list(done), (4, 1, 3, 2))[0]
        if what == "drivers killed":
            os.kill(rng.choice(alive), signal.SIGKILL)
            drivers.append(start(name))
        elif what == "edited":
            label = edit(dataset, rng)
            edits += [label] if label else []
        elif workers:
            hit = rng.choice(workers)
            kind = signal.SIGKILL if what == "workers killed" else signal.SIGSTOP
            with suppress(ProcessLookupError):
                os.kill(hit, kind)
                if kind == signal.SIGSTOP:
                    time.sleep(LEASE * rng.uniform(1.1, 2))
                    os.kill(hit, signal.SIGCONT)
        done[what] += 1
        if sum(done.values()) > 8:  # now let it end
            break
    codes = [driver.wait() for driver in drivers]
    assert 0 in codes or start(name).wait() == 0
    dataset.reload()
    kept = {c.id: c.caption for s in dataset for c in s["captions"].detections}
    assert all(kept[label] == EDIT for label in edits), "an edit was lost"
    return done


def main() -> None:
    """Runs the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    values = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ["REGIONCAP_CACHE"] = str(folder / "cache")
    paths = [folder / f"{number}.mp4" for number in range(values.videos)]
    for number, path in enumerate(paths):
        write_video(path, values.frames * (1 + number % 3))
    prompts = [Prompt(1, 0, box=(10, 20, 30, 44), label="square")]
    name = f"chaos-{uuid4().hex[:6]}"
    dataset, _, _ = datasets.add_videos(name, paths, prompts)
    models = {"propagator": "flow", "captioner": "measured"}
    try:
        assert api.propagate_and_caption(dataset, **models, progress=False).ok
        expected = labels(dataset)
        for number in range(values.rounds):
            forget(dataset, ("status", "error", "origin", "objects"))
            done = disturb(name, random.Random(values.seed + number), dataset)
            same = labels(dataset) == expected
            left = locks.collection("leases").count_documents({})
            print(
                f"round {number}: {done}, equal: {same}, leases left: {left}",
                flush=True,
            )
            assert same and left == 0
    finally:
        dataset.delete()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
