"""The main job as a person does it in the App."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap.core.types import Prompt, box_of_mask
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.system import assets
from tests.support.app import AppPage

pytestmark = pytest.mark.app


@pytest.fixture
def dataset(clips: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """A street with a box around the car that comes in, and a file that is gone."""
    clip = clips / "street-suv"
    mask = np.asarray(Image.open(clip / "masks" / "00002.png")) == 1
    made, _, _ = datasets.add_videos(
        "app-main-job",
        [clip / "clip.mp4"],
        [Prompt(3, 2, box=box_of_mask(mask), label="car")],
    )
    gone = fo.Sample(filepath="/nowhere/gone.mp4", media_type="video")
    box = fo.Detection(label="car", bounding_box=[0.1, 0.1, 0.2, 0.2])
    gone.frames[1] = fo.Frame(prompts=fo.Detections(detections=[box]))
    made.add_sample(gone)
    yield made
    made.delete()


def test_a_person_masks_and_describes_an_object(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
) -> None:
    assets.fetch("mobile_sam.pt")
    page.goto(serve(dataset.name))
    page.get_by_text("frames.prompts").first.wait_for()
    app.open_operator("propagate_and_caption")
    page.get_by_text("auto (mobilesam)").first.wait_for()
    app.execute(re.compile(r"for \d samples? in"))
    page.screenshot(path=artifacts / "summary.png")

    # Its buttons lead on.
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_role("button", name="Show 1 failed").click()
    app.close()
    page.locator("[data-cy=panel-content-caption_search]").wait_for()
    page.get_by_text("1 sample", exact=True).wait_for()
    page.locator("[data-cy=btn-clear-view-bar]").click()
    page.get_by_text("2 samples", exact=True).wait_for()

    dataset.reload()
    sample = dataset.first()
    assert sample["tracks_status"] == sample["captions_status"] == "complete"
    masks = [
        label.mask.sum()
        for frame in sample.frames.values()
        for label in frame["tracks"].detections
    ]
    assert len(masks) >= 6 and min(masks) > 0
    (caption,) = sample["captions"].detections
    assert caption.index == 3 and "car" in caption.caption

    app.open_sample()
    page.get_by_text("frames.tracks").first.wait_for()
    label = next(
        label for label in sample.frames[1]["tracks"].detections if label.index == 3
    )
    x, y, w, h = label.bounding_box

    def over_the_mask(box: dict[str, float]) -> tuple[float, float]:
        return (
            box["x"] + (x + w / 2) * box["width"],
            box["y"] + (y + h / 2) * box["height"],
        )

    # The tooltip over the mask shows the caption.
    app.point_until(over_the_mask, page.get_by_text(caption.caption).first)
    page.screenshot(path=artifacts / "tooltip.png")
