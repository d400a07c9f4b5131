"""Jobs on Ray: real actors, real nodes, a real database."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import locks
from fiftyone_regioncap.dataset import videos as datasets
from tests.support.jobs import forget
from tests.support.workers import cancel_from_elsewhere, customize

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.slow

PROMPTS = [
    Prompt(7, 3, box=(10, 20, 34, 44), label="disc"),
    Prompt(2, 0, box=(60, 40, 76, 56), label="brick"),
]
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
    made, _, _ = datasets.add_videos("on_ray", paths, PROMPTS)
    yield made
    made.delete()


@pytest.fixture
def expected(dataset, contents) -> dict:
    """What an undisturbed job in one process writes, which is removed again."""
    assert api.propagate_and_caption(dataset, **MODELS, progress=False).ok
    found = contents(dataset)
    forget(dataset)
    return found


def test_an_actor_that_is_killed(dataset, expected, contents) -> None:
    over, killed = threading.Event(), []

    def kill() -> None:
        while not over.wait(0.02) and not killed:
            lease = locks.collection("leases").find_one({})
            if lease is not None:
                os.kill(lease["pid"], signal.SIGKILL)
                killed.append(lease["pid"])

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        made = api.propagate_and_caption(
            dataset, **MODELS, executor="ray", workers=2, progress=False
        )
    finally:
        over.set()
        thread.join()
    assert killed and made.ok, made.failures
    assert contents(dataset) == expected
    assert locks.collection("leases").count_documents({}) == 0
    assert not ray.is_initialized()


def test_a_sample_that_kills_its_workers(
    dataset, expected, contents, tmp_path, monkeypatch
) -> None:
    customize(tmp_path, monkeypatch, "segfault")
    made = api.propagate_and_caption(
        dataset, **MODELS, executor="ray", workers=2, progress=False
    )
    (failure,) = made.failures
    assert failure.filepath.endswith("b.mp4")
    assert "the worker died 3 times on this sample" in failure.error
    found = contents(dataset)
    assert found.pop("b.mp4")["status"] == ["failed", "failed"]
    assert found == {name: expected[name] for name in found}
    assert locks.collection("leases").count_documents({}) == 0


def test_canceling_from_elsewhere(dataset, tmp_path, monkeypatch) -> None:
    customize(tmp_path, monkeypatch, "slow")
    cancel_from_elsewhere(
        lambda listen: api.propagate_and_caption(
            dataset, **MODELS, executor="ray", workers=2, progress=listen
        )
    )
    assert locks.collection("leases").count_documents({}) == 0


def test_three_nodes_of_which_one_is_lost(
    dataset, expected, contents, monkeypatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # the option goes before it

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    lost: list[bool] = []

    def lose(event) -> None:
        if event.frames and not lost:
            lost.append(True)
            cluster.remove_node(nodes[0])

    try:
        made = api.propagate_and_caption(
            dataset,
            **MODELS,
            executor="ray",
            address=cluster.address,
            workers=3,
            progress=lose,
        )
    finally:
        cluster.shutdown()
    assert made.ok, made.failures
    assert contents(dataset) == expected


def test_a_cluster_of_another_version(dataset) -> None:
    from ray._common.usage import usage_constants, usage_lib
    from ray._private import ray_constants
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        client = GcsClient(address=cluster.address)
        known = usage_lib.get_cluster_metadata(client)
        client.internal_kv_put(
            usage_constants.CLUSTER_METADATA_KEY,
            json.dumps({**known, "ray_version": "2.0.0"}).encode(),
            overwrite=True,
            namespace=ray_constants.KV_NAMESPACE_CLUSTER,
        )
        with pytest.raises(BackendError, match=r"Ray: 2\.0\.0[\s\S]*same versions"):
            api.propagate(
                dataset, propagator="flow", executor="ray", address=cluster.address
            )
    finally:
        cluster.shutdown()
    assert api.propagate(dataset, propagator="flow", executor="ray", workers=1).ok


def test_no_cluster_at_the_address(dataset) -> None:
    with pytest.raises(BackendError, match="no Ray cluster at"):
        api.propagate(dataset, propagator="flow", executor="ray", address="127.0.0.1:1")
