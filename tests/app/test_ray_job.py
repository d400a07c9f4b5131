"""A person watches and stops a delegated job that runs on a Ray cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest

from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import locks
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.jobs import board
from tests.support import ROOT
from tests.support.app import SECONDS, AppPage
from tests.support.workers import customize

pytest.importorskip("ray")

pytestmark = [pytest.mark.app, pytest.mark.slow, pytest.mark.timeout(1200)]

VIDEOS = 40
"""Number of videos, so that the job lasts for longer than it takes to stop it."""

DELEGATED = """
from fiftyone.operators.delegated import DelegatedOperationService
DelegatedOperationService().execute_queued_operations(limit=1, log=False)
"""
"""What ``fiftyone delegated launch`` does with what is queued."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of two nodes, whose workers wait at each frame."""
    from ray.cluster_utils import Cluster

    customize(tmp_path, monkeypatch, "slow")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made.address
    made.shutdown()


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path
) -> Iterator[fo.Dataset]:
    """Videos with a prompt each."""
    paths = [tmp_path / f"{number}.mp4" for number in range(VIDEOS)]
    for path in paths:
        shutil.copy(videos[0], path)
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
    made, _, _ = datasets.add_videos("app-ray", paths, prompts)
    yield made
    made.delete()


def test_a_delegated_job_on_ray_is_watched_and_canceled(
    cluster: str,
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIFTYONE_PLUGINS_DIR", str(ROOT))
    monkeypatch.setattr(fo.config, "plugins_dir", str(ROOT))
    propagate = foo.get_operator("@fiftyone-regioncap/regioncap/propagate_masks")
    propagate(
        dataset,
        delegate=True,
        propagator="flow",
        prompts="frames.prompts",
        executor="ray",
        address=cluster,
        workers=2,
    )
    app.open(serve(dataset.name))
    app.open_panel("Caption jobs")
    panel = page.locator("[data-cy=panel-content-region_jobs]")
    panel.get_by_text("No job ran").wait_for()
    driver = subprocess.Popen([sys.executable, "-c", DELEGATED])
    try:
        # The panel finds by itself what has begun elsewhere, and follows it.
        progress = re.compile(rf"[1-9]\d?/{VIDEOS} samples, 2 workers")
        panel.get_by_text(progress).wait_for()
        page.screenshot(path=artifacts / "ray-running.png")
        panel.get_by_role("button", name="Cancel").click()
        panel.get_by_text("canceled").wait_for()
        page.screenshot(path=artifacts / "ray-canceled.png")
        driver.wait(SECONDS)
    finally:
        driver.kill()
        driver.wait()
    (job,) = board.jobs(5, dataset._doc.id)
    assert (job["executor"], job["state"]) == ("ray", "canceled")
    # A worker that is ended by force gives no last word.
    assert all("report" in worker for worker in job["board"].values())
    assert locks.collection("leases").count_documents({}) == 0
    dataset.reload()
    assert 0 < dataset.values("tracks_status").count("complete") < VIDEOS
