"""Jobs on several workers end as an undisturbed one does, whatever dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import (
    BackendError,
    FieldError,
    OptionError,
)
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import leases, locks
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.dataset.targets import video_targets
from fiftyone_regioncap.jobs import board, costs
from fiftyone_regioncap.jobs.base import Job, StageSpec
from fiftyone_regioncap.jobs.executors import process_worker, processes
from fiftyone_regioncap.jobs.executors.driving import FAILED, Assignment, Driver
from fiftyone_regioncap.jobs.options import CaptionOptions, PropagateOptions
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.propagation.flow import FlowPropagator
from fiftyone_regioncap.system.assets import cache_dir
from tests.support.jobs import forget
from tests.support.workers import cancel_from_elsewhere, customize

PROMPTS = [
    Prompt(7, 3, box=(10, 20, 34, 44), label="disc"),
    Prompt(2, 0, box=(60, 40, 76, 56), label="brick"),
]
FRAMES = 27  # of each of the videos of tests/conftest.py, in both directions

MODELS = {"propagator": "flow", "captioner": "measured"}


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """Four videos with prompts."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{name}.mp4" for name in "abcd"]
    for path in paths:
        shutil.copy(videos[0], path)
    made, _, _ = datasets.add_videos("executors", paths, PROMPTS)
    yield made
    made.delete()


def run(dataset: fo.Dataset, executor: str = "processes", **options: object):
    if executor != "local":
        options.setdefault("workers", 2)
    options.setdefault("progress", False)
    options = {**MODELS, **options}
    return api.propagate_and_caption(dataset, executor=executor, **options)


def undisturbed(dataset: fo.Dataset, contents: Callable) -> dict:
    """What a job in one process writes, which is removed again."""
    assert run(dataset, "local").ok
    found = contents(dataset)
    forget(dataset)
    return found


def left_over() -> list[int]:
    """Counts what must not outlast a job."""
    names = ("leases", "outcomes", "locks")
    return [locks.collection(name).count_documents({}) for name in names]


def workers() -> list[int]:
    """Numbers of the worker processes of this test."""
    found = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True
    ).stdout
    rows = [line.split(None, 2) for line in found.splitlines()[1:]]
    own = str(os.getpid())
    return [int(p) for p, parent, args in rows if parent == own and "_worker" in args]


def test_workers_ended_killed_and_stopped(dataset, contents, monkeypatch) -> None:
    expected = undisturbed(dataset, contents)
    monkeypatch.setenv("REGIONCAP_LEASE_SECONDS", "2")
    signals = [signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP]
    hit: list[int] = []
    over = threading.Event()

    def disturb() -> None:
        while not over.wait(0.02) and len(hit) < len(signals):
            found = {lease["pid"] for lease in locks.collection("leases").find({})}
            for pid in sorted(found - set(hit))[:1]:  # at work, and not hit before
                os.kill(pid, signals[len(hit)])
                hit.append(pid)
        if len(hit) == len(signals):
            time.sleep(4)  # somebody else takes over
            os.kill(hit[-1], signal.SIGCONT)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        made = run(dataset)
    finally:
        over.set()
        thread.join()
    assert len(hit) == len(signals)
    assert made.ok, made.failures
    assert contents(dataset) == expected
    assert left_over() == [0, 0, 0] and workers() == []


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("segfault", "signal 11"),
        pytest.param("out of memory", "signal 9", marks=pytest.mark.slow),
        pytest.param("hang", "no sign of life for", marks=pytest.mark.slow),
        pytest.param("loop", "exit code 70", marks=pytest.mark.slow),
    ],
)
def test_a_sample_that_kills_its_workers(
    dataset, tmp_path, monkeypatch, how, says
) -> None:
    customize(tmp_path, monkeypatch, how)
    monkeypatch.setenv("REGIONCAP_STALL_SECONDS", "3" if how == "loop" else "600")
    monkeypatch.setenv("REGIONCAP_LEASE_SECONDS", "2")
    monkeypatch.setattr(leases, "SECONDS", 2.0)
    made = run(dataset)
    (failure,) = made.failures
    assert failure.filepath.endswith("b.mp4")
    assert f"the worker died 3 times on this sample ({says}" in failure.error
    dataset.reload()
    states = dict(zip("abcd", dataset.values("tracks_status"), strict=True))
    assert states == {**dict.fromkeys("acd", "complete"), "b": "failed"}
    config = dataset.get_run_info(made.run).config
    assert (config.propagator["name"], config.captioner["name"]) == ("flow", "measured")
    assert left_over() == [0, 0, 0] and workers() == []


def test_a_death_counts_on_what_was_taken_over_since(dataset) -> None:
    made = board.Run.begin("propagate", dataset.name, dataset._doc.id, ["tracks"])
    sample_id = dataset.first().id
    hung, other = (
        leases.Leases(dataset._doc.id, ["tracks"], "job") for _ in range(2)
    )  # whose threads don't run
    assert hung.claim(sample_id) is None
    past = locks.server_time() - timedelta(seconds=1)
    locks.collection("leases").update_many({}, {"$set": {"expires_at": past}})
    assert other.claim(sample_id) is None
    assert made.died(hung.owner) == [sample_id] and made.died(hung.owner) == []
    assert locks.collection("leases").distinct("owner") == [other.owner]
    assert made.died(other.owner) == [sample_id]
    assert made.outcomes([sample_id])[sample_id].deaths == 2
    made.end("failed")
    assert left_over() == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("full disk", "No space left on device: '/masks'; free some space there"),
        ("no room for the model", "MemoryError: CUDA out of memory"),
    ],
)
def test_a_machine_without_room(dataset, tmp_path, monkeypatch, how, says) -> None:
    customize(tmp_path, monkeypatch, how)
    made = run(dataset)
    assert made.ok, made.failures  # the other worker does it all
    (note,) = made.notes
    assert "a worker gave up" in note and says in note
    dataset.reload()
    assert dataset.values("captions_status") == ["complete"] * 4


@pytest.mark.slow
def test_captioners_apart(dataset, contents) -> None:
    expected = undisturbed(dataset, contents)
    made = run(dataset, workers=3, captioners=1)
    assert made.ok, made.failures
    assert (made.frames, made.captions) == (4 * FRAMES, 8)
    assert contents(dataset) == expected
    assert left_over() == [0, 0, 0]
    (job,) = board.jobs(1)
    logs = [path.read_text() for path in (cache_dir() / "logs" / job["id"]).iterdir()]
    assert len(logs) >= 3
    for sample_id in dataset.values("id"):
        assert sum(log.count(f"{sample_id}: done") for log in logs) == 1
    parts = [set(one["by_stage"]) for one in board.progress_of(job).values()]
    assert {"caption"} in parts and {"propagate"} in parts
    assert {"propagate", "caption"} not in parts


DRIVER = """
import sys
import fiftyone as fo
from fiftyone_regioncap import api
made = api.propagate_and_caption(
    fo.load_dataset(sys.argv[1]), propagator="flow", captioner="measured",
    progress=False, overwrite=True, overwrite_captions=True,
)
print(made.frames, made.captions, made.ok)
"""


def test_two_drivers_share_the_work(dataset, contents) -> None:
    expected = undisturbed(dataset, contents)
    command = [sys.executable, "-c", DRIVER, dataset.name]
    drivers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [driver.communicate()[0].split() for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0]
    assert {words[2] for words in said} == {"True"}
    if all(int(words[0]) for words in said):  # they ran at the same time
        assert sum(int(words[0]) for words in said) == 4 * FRAMES
        assert sum(int(words[1]) for words in said) == 8
    assert contents(dataset) == expected
    assert left_over() == [0, 0, 0]


def test_another_job_on_the_same_field_is_refused(dataset) -> None:
    errors: list[str] = []

    def other(event) -> None:
        if event.frames == 5 and not errors:
            with pytest.raises(FieldError, match="with other options") as refused:
                api.propagate(dataset, propagator=FlowPropagator(), stop=5)
            errors.append(str(refused.value))
            # One that writes another field is not in the way.
            made = api.propagate(
                dataset, propagator=FlowPropagator(), output="other", progress=False
            )
            assert made.ok

    assert run(dataset, "local", progress=other).ok
    (running,) = [job for job in board.jobs(3) if job["id"] in errors[0]]
    assert running["state"] == "done" and "jobs cancel" in errors[0]


@pytest.mark.parametrize("executor", ["local", "processes"])
def test_canceling_from_elsewhere(dataset, executor, tmp_path, monkeypatch) -> None:
    customize(tmp_path, monkeypatch, "slow")  # else workers may be done before
    cancel_from_elsewhere(lambda listen: run(dataset, executor, progress=listen))
    assert left_over()[0] == 0 and workers() == []


def test_a_model_that_is_loaded_can_not_be_sent(dataset) -> None:
    with pytest.raises(OptionError, match="give the propagator by its name"):
        api.propagate(dataset, propagator=FlowPropagator(), executor="processes")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"executor": "cluster"}, "executor='cluster': give one of"),
        ({"workers": 2}, "workers=2: give executor=processes"),
        ({"executor": "processes", "address": "auto"}, "give executor=ray"),
        ({"executor": "processes", "workers": 0}, "at least 1"),
        ({"captioners": 1}, "captioners=1: give executor=processes"),
        (
            {"executor": "processes", "workers": 2, "captioners": 1},
            "captioners=1: the job has no stages before captioning",
        ),
    ],
    ids=[
        "unknown",
        "workers alone",
        "address alone",
        "no workers",
        "captioners alone",
        "nothing before captioning",
    ],
)
def test_options_that_do_not_fit(dataset, options, says) -> None:
    with pytest.raises(OptionError, match=says):
        api.propagate(dataset, **options)


def test_no_worker_can_run(dataset, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    weights = str(tmp_path / "empty")
    with pytest.raises(BackendError, match=r"no worker can run: .*WeightsError"):
        run(dataset, captioner_weights=weights, captioner="dam")


@pytest.mark.slow
def test_clips_of_one_video_in_parallel(dataset, contents) -> None:
    sample = dataset.first()
    supports = ([1, 6], [7, 12], [13, 24])
    events = [fo.TemporalDetection(label="shot", support=one) for one in supports]
    sample["shots"] = fo.TemporalDetections(detections=events)
    sample.save()
    dataset.delete_samples(dataset.skip(1).values("id"))
    shots = dataset.to_clips("shots")
    models = {"propagator": "flow", "progress": False}
    assert api.propagate(shots, **models).ok
    expected = contents(dataset)
    dataset.delete_frame_field("tracks")
    workers: set[str] = set()

    def listen(_) -> None:
        leases = list(locks.collection("leases").find({}))
        workers.update(lease["owner"] for lease in leases)
        assert {lease["_id"].rpartition("/")[2].count(":") for lease in leases} <= {1}

    made = api.propagate(
        shots, **{**models, "progress": listen}, executor="processes", workers=2
    )
    assert made.ok, made.failures
    assert contents(dataset) == expected
    assert left_over() == [0, 0, 0]
    again = api.propagate(shots, **models, executor="processes", workers=2)
    assert again.ok and again.frames == 0


def test_captioners_leave_a_worker_for_the_stages_before(dataset) -> None:
    with pytest.raises(OptionError, match="captioners=2: leave at least one of 2"):
        run(dataset, captioners=2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"database": "another"}, "sees another database than the driver"),
        ({"paths": ["/nowhere/video.mp4"]}, "does not see /nowhere/video.mp4; mount"),
    ],
    ids=["database", "media"],
)
def test_a_worker_that_can_not_work_says_why(
    dataset, change, says, monkeypatch
) -> None:
    # This process is no worker; its logging stays as it is.
    monkeypatch.setattr(process_worker, "_log_to_file", lambda _: None)
    made = board.Run.begin("propagate", dataset.name, dataset._doc.id)
    options = PropagateOptions()
    spec = StageSpec.of("propagate", options, propagator=ModelSpec("flow"))
    told = Assignment(
        Job.of(dataset, "propagate", spec).to_dict(),
        *(made.id, made.group, str(dataset._doc.id), ("tracks",), "signature"),
        *("owner", "w0", locks.database_id()),
    )
    assert process_worker.work(replace(told, **change)) == FAILED
    (found,) = (job for job in board.jobs() if job["id"] == made.id)
    assert says in found["board"]["w0"]["error"]
    made.end("failed")


def test_costs_that_were_measured_say_how_many_captioners(
    dataset, tmp_path, monkeypatch
) -> None:
    job = Job.of(
        dataset,
        "both",
        StageSpec.of("propagate", PropagateOptions(), propagator=ModelSpec("flow")),
        StageSpec.of("caption", CaptionOptions(), captioner=ModelSpec("measured")),
    )

    def captioners(workers: int) -> int:
        driver = Driver(job, "processes", workers, None, captioners="auto")
        driver._targets = video_targets(dataset)
        return sum(part.after is not None for part in driver._parts())

    assert captioners(8) == 0  # nothing was measured: each does all stages
    costs.remember_cost("propagate", "flow", 0.25 / 24)  # a video takes 0.25 s
    costs.remember_cost("caption", "measured", 0.75)
    assert [captioners(workers) for workers in (1, 2, 8)] == [0, 1, 6]


def test_each_worker_has_a_gpu(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert processes.has_gpus(2) and not processes.has_gpus(3)
    assert processes.gpus() == ["3", "5"]
    assert processes.worker_environment("5", 2)["CUDA_VISIBLE_DEVICES"] == "5"
