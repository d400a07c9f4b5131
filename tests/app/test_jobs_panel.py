"""A person sees jobs of any door in the App, stops one, and looks at what failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import Canceled
from fiftyone_regioncap.jobs import board
from tests.support.app import AppPage, wait_until

pytestmark = pytest.mark.app

COPIES = 12
"""Number of videos, so that a job lasts for longer than it takes to stop it."""


@pytest.fixture
def dataset(clips: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """A file that is gone, and many videos, each with a box on its first frame."""
    made = fo.Dataset("app-jobs", persistent=True)
    video = str(clips / "car-shadow" / "clip.mp4")
    for path in ["/nowhere/gone.mp4", *[video] * COPIES]:
        sample = fo.Sample(filepath=path, media_type="video")
        box = fo.Detection(label="car", bounding_box=[0.37, 0.21, 0.43, 0.39])
        sample.frames[1] = fo.Frame(prompts=fo.Detections(detections=[box]))
        made.add_sample(sample)
    yield made
    made.delete()


def test_a_person_stops_a_job_and_sees_what_failed(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
) -> None:
    def run(view: Any) -> Any:
        return api.propagate(view, propagator="flow", overwrite=True, progress=False)

    summary = run(dataset.limit(1))
    assert len(summary.failures) == 1
    app.open(serve(dataset.name))

    # One whose progress the page shows.
    app.open_operator("propagate_masks")
    app.choose("auto (mobilesam)", "flow: ")
    app.execute(re.compile(r"\d left"))
    page.screenshot(path=artifacts / "jobs-progress.png")
    page.get_by_role("button", name="Cancel").last.click()
    page.get_by_text("Canceled.").first.wait_for()
    app.close()

    # One of another process, here the SDK's.
    app.open_panel("Caption jobs")
    panel = page.locator("[data-cy=panel-content-region_jobs]")
    panel.get_by_text("gone.mp4").first.wait_for()
    with ThreadPoolExecutor() as pool:
        job = pool.submit(run, dataset.skip(1))
        wait_until(lambda: board.jobs(1)[0]["state"] == "running", "a running job")
        # The panel may have found it by itself before the button is pressed.
        running = panel.get_by_text("running")
        panel.get_by_role("button", name="Refresh").or_(running).first.click()
        running.wait_for()
        page.screenshot(path=artifacts / "jobs-running.png")
        panel.get_by_role("button", name="Cancel").click()
        panel.get_by_text("running").wait_for(state="hidden")
        assert panel.get_by_text("canceled").count() == 2
        with pytest.raises(Canceled):
            job.result()
    page.screenshot(path=artifacts / "jobs-canceled.png")
    panel.get_by_role("button", name="Show 1 failed").click()
    page.get_by_text("1 sample", exact=True).wait_for()
