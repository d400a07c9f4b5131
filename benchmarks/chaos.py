"""Disturbs jobs at random and compares what they wrote with an undisturbed one.

In each round, one driver or two work on a few small videos, in their own process, with
processes or on a Ray cluster, while something dies or is stopped; now and then a person
edits captions meanwhile. A driver that died is started again, as a person would.
Afterwards all labels must be those of the undisturbed job, edits must be kept, no lease
may be left, and nothing but what was at hand may have been written twice.

The database is one of its own, which is killed too.

    python -m benchmarks.chaos --kills 40 --seed 0
    python -m benchmarks.chaos --kills 6 --executors processes
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fiftyone_regioncap.system import assets, database

if TYPE_CHECKING:
    import fiftyone as fo

LEASE = 3.0
"""Seconds that a lease lasts, so that rounds are short."""

EDIT = "An edited caption."

DISTURBANCES = (
    "worker killed",
    "driver killed",
    "node killed",
    "database killed",
    "worker stopped",
    "stopped before a write",
)

SITE = """
import os, signal, time
if os.environ.get("CHAOS"):
    import fiftyone_regioncap.jobs.propagating as propagating
    import fiftyone_regioncap.propagation.flow as flow
    from pymongo.collection import Collection

    propagating.CHECKPOINT_SECONDS = 1.0
    real = flow.FlowPropagator.propagate

    class Slow:
        def __init__(self, inner):
            self._inner = inner
        def __iter__(self):
            return self
        def __next__(self):
            time.sleep(0.02)
            return next(self._inner)
        def checkpoint(self):
            return self._inner.checkpoint()

    flow.FlowPropagator.propagate = lambda *given: Slow(real(*given))

    def stopping(name):
        write = getattr(Collection, name)
        def stop_first(self, *args, **options):
            if self.name.startswith(("frames.", "samples.")):
                try:
                    flag = os.environ["CHAOS"]
                    os.rename(flag, f"{flag}-{os.getpid()}")
                except OSError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGSTOP)
            return write(self, *args, **options)
        setattr(Collection, name, stop_first)

    stopping("bulk_write")
    stopping("update_one")
"""
"""Runs in each process of a job: propagates slowly, and stops itself before the next
write of labels once the file is there that ``CHAOS`` names."""


def write_video(path: Path, frames: int) -> None:
    """Writes a video of a square that moves."""
    import av
    import numpy as np

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


_EDITED = {"_dataset_id", "caption", "review", "source_caption"}
"""What a person changes, and what differs anyway."""


def labels(dataset: fo.Dataset) -> dict[str, Any]:
    """Reads all that the job writes, ids included, times and edits left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in _EDITED}
        return [plain(v) for v in value] if isinstance(value, list) else value

    dataset.reload()
    return {
        sample.filepath: {
            "captions": plain(sample["captions"].to_dict()),
            "states": [sample["tracks_status"], sample["captions_status"]],
            "origins": [sample["tracks_origin"], sample["captions_origin"]],
            "frames": {
                number: plain(frame["tracks"].to_dict())
                for number, frame in sample.frames.items()
                if frame.has_field("tracks") and frame["tracks"] is not None
            },
        }
        for sample in dataset
    }


def difference(found: Any, expected: Any, place: str = "") -> str:
    """Returns where two values differ first, and how; empty for equal ones."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in {**expected, **found}:
            there = f"{place}/{key}"
            if said := difference(found.get(key), expected.get(key), there):
                return said
        return ""
    if isinstance(found, list) and isinstance(expected, list):
        pairs = dict(enumerate(found)), dict(enumerate(expected))
        return difference(*pairs, place)
    return "" if found == expected else f"{place}: {found!r}, not {expected!r}"


def edit(dataset: fo.Dataset, rng: random.Random) -> str | None:
    """Edits a caption that is there, as the App does; returns its id."""
    samples = dataset._sample_collection
    query = {"captions.detections.0.review": "unreviewed"}
    found = list(samples.find(query, {"captions": 1}))
    if not found:
        return None
    label = rng.choice(found)["captions"]["detections"][0]["_id"]
    place = "captions.detections.$"
    changed = samples.update_one(
        {"captions.detections._id": label},
        {"$set": {f"{place}.caption": EDIT, f"{place}.review": "edited"}},
    )
    return str(label) if changed.modified_count else None


class Writes:
    """Counts the writes of frames by sample, as the database's profiler sees them."""

    def __init__(self, dataset: fo.Dataset) -> None:
        self._dataset = dataset
        self.by_sample: Counter[str] = Counter()
        self._since: Any = None

    def begin(self) -> None:
        """Starts to count, also after the database was started again."""
        from bson import SON

        db = self._dataset._frame_collection.database
        with suppress(Exception):
            db.command("profile", 0)
            if "system.profile" not in db.list_collection_names():
                db.create_collection("system.profile", capped=True, size=64 << 20)
            name = f"{db.name}.{self._dataset._frame_collection_name}"
            only = {"ns": name, "op": "update"}
            db.command(SON([("profile", 1), ("slowms", -1), ("filter", only)]))

    def collect(self) -> None:
        """Adds what was written since the last call."""
        found = self._dataset._frame_collection.database["system.profile"]
        query = {} if self._since is None else {"ts": {"$gt": self._since}}
        for entry in found.find(query).sort("$natural", 1):
            self._since = entry["ts"]
            asked = (entry.get("command") or {}).get("q") or {}
            wrote = entry.get("nModified", 0) + entry.get("nUpserted", 0)
            if wrote and "_sample_id" in asked:
                self.by_sample[str(asked["_sample_id"])] += wrote


def at_work() -> dict[int, set[str]]:
    """Returns the samples that processes have leases on."""
    from fiftyone_regioncap.dataset import locks

    found: dict[int, set[str]] = {}
    with suppress(Exception):
        for lease in locks.collection("leases").find({}):
            sample_id = lease["_id"].rpartition("/")[2]
            found.setdefault(lease["pid"], set()).add(sample_id)
    return found


_HEAD = {"num_cpus": 1, "include_dashboard": False}


@dataclass
class Cluster:
    """A Ray cluster of three nodes on this machine, whose nodes are killed."""

    made: Any = None
    nodes: list[Any] = field(default_factory=list)

    def address(self) -> str:
        """Returns its address; starts it, or nodes that are missing."""
        from ray.cluster_utils import Cluster as Nodes

        while self.made is None:
            try:
                self.made = Nodes(initialize_head=True, head_node_args=_HEAD)
            except Exception as error:  # its agents were too slow on a busy machine
                print(f"Ray did not start, once more: {error}", flush=True)
        while len(self.nodes) < 2:
            with suppress(Exception):
                self.nodes.append(self.made.add_node(num_cpus=1))
        return self.made.address

    def kill_node(self, rng: random.Random) -> bool:
        """Kills the process of a node that is not the head."""
        if not self.nodes:
            return False
        node = self.nodes.pop(rng.randrange(len(self.nodes)))
        self.made.remove_node(node, allow_graceful=False)
        return True

    def end(self) -> None:
        """Ends all nodes."""
        if self.made is not None:
            self.made.shutdown()


@dataclass
class Round:
    """One job and what is done to it.

    Attributes:
        dataset: The dataset.
        executor: Where it runs.
        drivers: Number of drivers at once.
        editing: Whether a person edits captions meanwhile.
        rng: Source of chance.
        flag: File that makes the next process that writes labels stop itself.
        cluster: The Ray cluster.
        writes: Counts of writes.
    """

    dataset: fo.Dataset
    executor: str
    drivers: int
    editing: bool
    rng: random.Random
    flag: Path
    cluster: Cluster
    writes: Writes
    edits: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    alive: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Starts a driver."""
        command = ["propagate-and-caption", "--dataset", self.dataset.name]
        command += ["--propagator", "flow", "--captioner", "measured"]
        command += ["--executor", self.executor]
        if self.executor != "local":
            command += ["--workers", "2"]
        if self.executor == "ray":
            command += ["--address", self.cluster.address()]
        code = "from fiftyone_regioncap.cli.main import main; main()"
        log = open(self.flag.with_name("drivers.log"), "ab")  # noqa: SIM115
        self.alive.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *command], stdout=log, stderr=log
            )
        )

    def run(self, kinds: Sequence[str]) -> dict[str, int]:
        """Runs drivers until the job is done.

        Args:
            kinds: What is done to it, in this order.

        Returns:
            What was done, and how often.
        """
        done: Counter[str] = Counter()
        waiting = list(kinds)
        for _ in range(self.drivers):
            self.start()
        while any(driver.poll() is None for driver in self.alive):
            time.sleep(self.rng.uniform(0.2, 1.0))
            with suppress(Exception):
                self.writes.collect()
            if self.editing and (label := edit(self.dataset, self.rng)):
                self.edits.add(label)
            if waiting and at_work() and self.disturb(waiting[0]):
                done[waiting.pop(0)] += 1
                time.sleep(self.rng.uniform(0, 2))
        if all(driver.returncode for driver in self.alive):
            self.start()  # as a person would
            self.alive[-1].wait()
        self.flag.unlink(missing_ok=True)
        said = self.flag.with_name("drivers.log").read_text(errors="replace")[-3000:]
        assert 0 in {driver.returncode for driver in self.alive}, said
        self.writes.collect()
        return dict(done)

    def disturb(self, kind: str) -> bool:
        """Does one thing to the job; returns whether it could be done."""
        held = at_work()
        drivers = [driver.pid for driver in self.alive if driver.poll() is None]
        workers = sorted(held)
        if not workers or not drivers:
            return False
        if kind in ("worker killed", "worker stopped"):
            pid = self.rng.choice(workers)
            self.touched |= held[pid]
            if kind == "worker killed":
                os.kill(pid, signal.SIGKILL)
            else:
                stop(pid, self.rng)
        elif kind == "stopped before a write":
            return self.stop_before_write()
        else:
            self.touched |= set().union(*held.values())
            if kind == "driver killed":
                os.kill(self.rng.choice(drivers), signal.SIGKILL)
                time.sleep(1)
            elif kind == "node killed":
                if not self.cluster.kill_node(self.rng):
                    return False
            else:
                kill_database()
                time.sleep(self.rng.uniform(0, LEASE))
                database.start()
                self.writes.begin()
        self.touched |= set().union(*at_work().values())
        if all(driver.poll() for driver in self.alive):  # all died
            self.start()
        return True

    def stop_before_write(self) -> bool:
        """Lets a process stop itself between its look at the lease and its write."""
        self.flag.touch()
        until = time.monotonic() + 5
        while self.flag.exists() and time.monotonic() < until:
            time.sleep(0.02)
        stopped = list(self.flag.parent.glob(f"{self.flag.name}-*"))
        self.flag.unlink(missing_ok=True)
        for path in stopped:
            pid = int(path.name.rpartition("-")[2])
            path.unlink()
            self.touched |= at_work().get(pid, set())
            stop(pid, self.rng)
        return bool(stopped)


def stop(pid: int, rng: random.Random) -> None:
    """Stops a process for longer than its leases last."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(LEASE * rng.uniform(1.1, 2))
        os.kill(pid, signal.SIGCONT)


def kill_database() -> None:
    """Kills the server, as a machine that loses its power."""
    from fiftyone.core.odm import get_db_client

    os.kill(get_db_client().admin.command("serverStatus")["pid"], signal.SIGKILL)


@contextmanager
def own_database() -> Iterator[Path]:
    """Gives the processes of the jobs a folder and a database of their own."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    cache = folder / "cache"
    cache.mkdir()
    for path in assets.cache_dir().glob(f"{database.MONGOD.package}-*"):
        if path.is_dir():
            (cache / path.name).symlink_to(path)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    os.environ.update(
        REGIONCAP_CACHE=str(cache),
        REGIONCAP_LEASE_SECONDS=str(LEASE),
        CHAOS=str(folder / "stop"),
        PYTHONPATH=f"{folder / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    )
    for name in ("FIFTYONE_DATABASE_URI", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    try:
        database.ensure()
        yield folder
    finally:
        database.stop()
        shutil.rmtree(folder, ignore_errors=True)


def plan(
    kills: int, kinds: Sequence[str], executors: Sequence[str], rng: random.Random
) -> list[str]:
    """Returns what is done, each kind about as often."""
    kinds = [k for k in kinds if k != "node killed" or "ray" in executors]
    found = (kinds * (kills // len(kinds) + 1))[:kills]
    rng.shuffle(found)
    return found


def disturbed(
    folder: Path,
    *,
    kills: int,
    seed: int,
    each: int = 2,
    videos: int = 6,
    frames: int = 40,
    executors: Sequence[str] = ("local", "processes", "ray"),
    kinds: Sequence[str] = DISTURBANCES,
    say: Callable[[str], None] = print,
) -> None:
    """Disturbs jobs, and compares.

    Args:
        folder: Folder for videos; see :func:`own_database`.
        kills: Number of things that are done to them.
        each: Number of these that are done to one job.
        seed: Seed of chance.
        videos: Number of videos.
        frames: Frames of the shortest one; the longest has three times as many.
        executors: Where jobs run, in turn.
        kinds: Kinds of things that are done to them.
        say: Told about each round.

    Raises:
        AssertionError: When a job ended otherwise than undisturbed ones do.
    """
    from fiftyone_regioncap import api
    from fiftyone_regioncap.core.types import Prompt
    from fiftyone_regioncap.dataset import locks
    from fiftyone_regioncap.dataset import videos as datasets
    from tests.support.jobs import forget

    rng = random.Random(seed)
    paths = [folder / f"{number}.mp4" for number in range(videos)]
    for number, path in enumerate(paths):
        write_video(path, frames * (1 + number % 3))
    prompts = [Prompt(1, 0, box=(10, 20, 30, 44), label="square")]
    dataset, _, _ = datasets.add_videos(f"chaos-{uuid4().hex[:6]}", paths, prompts)
    writes, cluster = Writes(dataset), Cluster()
    models = {"propagator": "flow", "captioner": "measured"}
    try:
        writes.begin()
        assert api.propagate_and_caption(dataset, **models, progress=False).ok
        writes.collect()
        expected, ideal = labels(dataset), dict(writes.by_sample)
        todo = plan(kills, kinds, executors, rng)
        number = 0
        while todo:
            forget(dataset, ("status", "error", "origin", "objects"))
            writes.by_sample.clear()
            on_ray = "node killed" in todo[:each]
            job = Round(
                dataset,
                "ray" if on_ray else executors[number % len(executors)],
                drivers=2 if number % 2 else 1,
                editing=number % 4 == 1,
                rng=rng,
                flag=folder / "stop",
                cluster=cluster,
                writes=writes,
            )
            began = time.monotonic()
            done = job.run(todo[:each])
            for kind, times in done.items():
                for _ in range(times):
                    todo.remove(kind)
            found = labels(dataset)
            wrong = difference(found, expected)
            left = locks.collection("leases").count_documents({})
            kept = {c.id: c.caption for s in dataset for c in s["captions"].detections}
            lost = [label for label in job.edits if kept[label] != EDIT]
            more = {
                i: n - ideal[i] for i, n in writes.by_sample.items() if n > ideal[i]
            }
            elsewhere = {i: n for i, n in more.items() if i not in job.touched}
            say(
                f"round {number} ({job.executor}, {job.drivers} drivers): {done}, "
                f"{len(job.edits)} edits; wrong: {wrong or 'nothing'}, edits lost: "
                f"{len(lost)}, leases left: {left}; {sum(ideal.values())} writes and "
                f"{sum(more.values())} more, of them {sum(elsewhere.values())} on "
                f"samples that nothing happened to; {time.monotonic() - began:.0f} s"
            )
            assert not (wrong or lost or left or elsewhere), (wrong, lost, elsewhere)
            number += 1
    finally:
        cluster.end()
        with suppress(Exception):
            dataset.delete()


def main() -> None:
    """Runs the rounds."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--each", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--executors", nargs="+", default=["local", "processes", "ray"])
    parser.add_argument("--kinds", nargs="+", default=DISTURBANCES)
    values = vars(parser.parse_args())
    with own_database() as folder:
        disturbed(folder, **values, say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
