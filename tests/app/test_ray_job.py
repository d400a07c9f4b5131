"""A person watches and stops a delegated job that runs on Ray."""

from __future__ import annotations

import os
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
from tests.support.workers import customize

pytest.importorskip("ray")

pytestmark = [pytest.mark.app, pytest.mark.slow, pytest.mark.timeout(900)]

VIDEOS = 12

DELEGATED = """
from fiftyone.operators.delegated import DelegatedOperationService
DelegatedOperationService().execute_queued_operations(limit=1, log=False)
"""


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """Videos that take long, as their workers wait at each frame."""
    customize(tmp_path, monkeypatch, "slow")
    monkeypatch.setenv("FIFTYONE_PLUGINS_DIR", str(ROOT))
    monkeypatch.setattr(fo.config, "plugins_dir", str(ROOT))
    paths = [tmp_path / f"{number}.mp4" for number in range(VIDEOS)]
    for path in paths:
        shutil.copy(videos[0], path)
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
    made, _, _ = datasets.add_videos("app-ray", paths, prompts)
    yield made
    made.delete()


def test_a_delegated_job_on_ray_is_watched_and_canceled(
    dataset: fo.Dataset, serve: Callable[[str], str], page: Any, artifacts: Path
) -> None:
    operator = foo.get_operator("@fiftyone-regioncap/regioncap/propagate_masks")
    chosen = {"propagator": "flow", "prompts": "frames.prompts"}
    operator(dataset, delegate=True, **chosen, executor="ray", workers=2)
    page.goto(serve(dataset.name))
    page.locator("[data-cy=looker]").first.wait_for()
    page.get_by_role("button", name="Dismiss").click()
    page.get_by_title("New panel").last.click()
    page.get_by_text("Caption jobs", exact=True).last.click()
    panel = page.locator("[data-cy=panel-content-region_jobs]")
    driver = subprocess.Popen([sys.executable, "-c", DELEGATED], env=os.environ)
    try:
        progress = re.compile(rf"[1-9]\d?/{VIDEOS} samples, 2 workers")
        panel.get_by_text(progress).first.wait_for(timeout=300_000)
        page.screenshot(path=artifacts / "ray-running.png")
        panel.get_by_role("button", name="Cancel").click()
        panel.get_by_text("canceled").first.wait_for()
        page.screenshot(path=artifacts / "ray-canceled.png")
        driver.wait(timeout=120)
    finally:
        driver.kill()
    (job,) = board.jobs(5, dataset._doc.id)
    assert (job["executor"], job["state"]) == ("ray", "canceled")
    assert all("report" in worker for worker in job["board"].values())
    assert locks.collection("leases").count_documents({}) == 0
    dataset.reload()
    states = dataset.values("tracks_status")
    assert 0 < states.count("complete") < VIDEOS
