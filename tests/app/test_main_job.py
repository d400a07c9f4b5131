"""The main job as a person does it in the App."""

from __future__ import annotations

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

pytestmark = pytest.mark.app


@pytest.fixture
def dataset(clips: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """A real street with a box around the car that comes in."""
    clip = clips / "street-suv"
    mask = np.asarray(Image.open(clip / "masks" / "00002.png")) == 1
    made, _, _ = datasets.add_videos(
        "app-main-job",
        [clip / "clip.mp4"],
        [Prompt(3, 2, box=box_of_mask(mask), label="car")],
    )
    yield made
    made.delete()


def test_a_person_masks_and_describes_an_object(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    open_operator: Callable[[Any, str], None],
    point_until: Callable[..., None],
    artifacts: Path,
) -> None:
    assets.fetch("mobile_sam.pt")
    page.goto(serve(dataset.name))
    page.get_by_text("frames.prompts").first.wait_for()
    open_operator(page, "propagate_and_caption")
    page.get_by_text("auto (mobilesam)").first.wait_for()
    page.get_by_role("button", name="Execute").first.click()
    page.get_by_text("for 1 sample in").first.wait_for(timeout=300_000)
    page.screenshot(path=artifacts / "summary.png")

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

    page.keyboard.press("Escape")
    page.locator("[data-cy=looker]").first.click()
    page.locator("[data-cy=modal]").wait_for()
    page.get_by_text("frames.tracks").first.wait_for()
    page.wait_for_timeout(3000)
    page.screenshot(path=artifacts / "sample.png")
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
    point_until(page, over_the_mask, page.get_by_text(caption.caption).first)
    page.screenshot(path=artifacts / "tooltip.png")
