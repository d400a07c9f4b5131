"""Power is lost just after a checkpoint: what it claims is in the database.

The server and the job are killed at the same moment. Writes that the server has not put
into its journal yet are lost then, as with the power: it keeps them in memory for up to
half a second here.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pymongo
import pytest
from safetensors.numpy import load_file

from fiftyone_regioncap.core.errors import DatabaseError
from fiftyone_regioncap.system import database

MAKE = """
import fiftyone as fo
from pathlib import Path
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos
prompts = [Prompt(7, 3, box=(10, 20, 34, 44)), Prompt(2, 0, box=(60, 40, 76, 56))]
videos.add_videos(sys.argv[1], [Path(sys.argv[2])], prompts)
"""

RUN = """
import os, signal
from fiftyone_regioncap.jobs import propagating
from fiftyone_regioncap.jobs.checkpoints import CheckpointFile

name, storage, server, after = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
propagating.CHECKPOINT_SECONDS = 0.0
save, saved = CheckpointFile.save, 0

def save_and_lose_power(self, checkpoint):
    global saved
    save(self, checkpoint)
    saved += 1
    if saved == after:
        os.kill(server, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointFile.save = save_and_lose_power
import fiftyone as fo
from fiftyone_regioncap import api
made = api.propagate(
    fo.load_dataset(name), propagator="flow", mask_storage=storage, progress=False
)
assert made.ok, made.failures
"""

MOVE = """
import os, signal
import fiftyone as fo
from fiftyone_regioncap.dataset.mask_storage import move_masks
sample = fo.load_dataset(sys.argv[1]).first()
for _ in move_masks(sample, "tracks", sys.argv[2]):
    for process in (int(sys.argv[3]), os.getpid()):
        os.kill(process, signal.SIGKILL)
"""


@dataclass
class Machine:
    """A database server of its own, and processes that use it.

    Attributes:
        folder: Folder of the data and of the cache.
        mongod: Path of the server's program.
        port: Port of the server.
    """

    folder: Path
    mongod: Path
    port: int = field(default_factory=database._free_port)
    _server: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Address of the server."""
        return f"mongodb://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the server, after whatever happened to it."""
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        self._server = subprocess.Popen(
            [
                *(str(self.mongod), "--dbpath", str(data), "--port", str(self.port)),
                *("--bind_ip", "127.0.0.1", "--nounixsocket", "--quiet"),
                *("--journalCommitInterval", "500"),
            ],
            stdout=subprocess.DEVNULL,
        )
        assert database._wait(lambda: database.reachable(self.uri), seconds=60)

    def stop(self) -> None:
        """Ends the server."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def python(self, script: str, *arguments: object) -> int:
        """Runs a script; returns its exit code."""
        environment = {
            "FIFTYONE_DATABASE_URI": self.uri,
            "FIFTYONE_DATABASE_NAME": "power",
            "FIFTYONE_DATABASE_VALIDATION": "false",
            "FIFTYONE_DEFAULT_DATASET_DIR": str(self.folder / "masks"),
            "REGIONCAP_CACHE": str(self.folder / "cache"),
        }
        command = [sys.executable, "-c", "import sys\n" + script, *map(str, arguments)]
        return subprocess.run(command, env={**os.environ, **environment}).returncode

    def lose_power(
        self, script: str, name: str, storage: str, *arguments: object
    ) -> None:
        """Runs a script that kills the server and itself."""
        assert self._server is not None
        code = self.python(script, name, storage, self._server.pid, *arguments)
        assert code == -signal.SIGKILL
        self._server.wait()
        self.start()

    def labels(self, name: str) -> dict[int, list[Any]]:
        """Returns index, box and mask of the tracks' labels, by frame from 0."""
        with pymongo.MongoClient(self.uri) as client:
            dataset = client.power.datasets.find_one({"name": name})
            frames = client.power[dataset["frame_collection_name"]]
            documents = list(frames.find({"tracks": {"$ne": None}}))
        found: dict[int, list[Any]] = {}
        for document in documents:
            for label in document.get("tracks", {}).get("detections", ()):
                mask: Any = label.get("mask")
                if label.get("mask_path"):
                    mask = cv2.imread(label["mask_path"], cv2.IMREAD_GRAYSCALE)
                    mask = np.packbits(mask > 0).tobytes()
                assert mask is not None
                place = (label["index"], label["bounding_box"], mask)
                found.setdefault(document["frame_number"] - 1, []).append(place)
        return found

    def claimed(self) -> set[int]:
        """Returns the frames that checkpoints claim, from 0."""
        files = (self.folder / "cache/jobs").rglob("*.safetensors")
        return {frame for one in files for frame in load_file(one)["job/frames"]}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose server runs."""
    try:
        mongod = database._installed(lambda _: None)
    except DatabaseError as error:
        pytest.skip(str(error))
    made = Machine(tmp_path_factory.mktemp("machine"), mongod)
    made.start()
    yield made
    made.stop()


def lose_power_again_and_again(
    machine: Machine, video: Path, storage: str, rounds: list[int]
) -> None:
    """Loses power after so many checkpoints each time, then lets the job end."""
    whole, broken = f"whole-{storage}-{len(rounds)}", f"broken-{storage}-{len(rounds)}"
    for name in (whole, broken):
        assert machine.python(MAKE, name, video) == 0
    assert machine.python(RUN, whole, storage, 0, 0) == 0
    reached = 0
    for after in rounds:
        machine.lose_power(RUN, broken, storage, after)
        claimed = machine.claimed()
        assert claimed <= machine.labels(broken).keys()
        assert len(claimed) > reached  # it went on from the last checkpoint
        reached = len(claimed)
    assert machine.python(RUN, broken, storage, 0, 0) == 0
    assert machine.labels(broken) == machine.labels(whole)
    assert not machine.claimed()


def test_power_is_lost_after_a_checkpoint(machine, videos) -> None:
    lose_power_again_and_again(machine, videos[0], "inline", [6, 5])


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["inline", "disk"])
def test_power_is_lost_again_and_again(machine, videos, storage) -> None:
    rng = random.Random(0)
    rounds = [rng.randint(2, 3) for _ in range(8)]
    lose_power_again_and_again(machine, videos[0], storage, rounds)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["inline", "disk"])
def test_power_is_lost_while_masks_are_moved(machine, videos, to) -> None:
    name, storage = f"moved-{to}", {"inline": "disk", "disk": "inline"}[to]
    assert machine.python(MAKE, name, videos[0]) == 0
    assert machine.python(RUN, name, storage, 0, 0) == 0
    before = machine.labels(name)
    machine.lose_power(MOVE, name, to)
    assert machine.labels(name).keys() == before.keys()  # and each has its mask
