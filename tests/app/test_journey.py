"""A person draws a box in Annotate and propagates it beside the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap.core.types import box_of_mask, paste_mask
from fiftyone_regioncap.system import assets

pytestmark = [pytest.mark.app, pytest.mark.timeout(900)]

CLIP = "car-shadow"


@pytest.fixture
def dataset(clips: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """Videos of one's own, on which nothing is marked yet."""
    assets.fetch("mobile_sam.pt")
    made = fo.Dataset("app-journey", persistent=True)
    for name in (CLIP, "dogs-jump"):
        made.add_sample(fo.Sample(filepath=str(clips / name / "clip.mp4")))
    made.compute_metadata()
    yield made
    made.delete()


def truth(clips: Path, number: int) -> np.ndarray:
    """The annotated mask of the car, by FiftyOne's number of the frame."""
    path = clips / CLIP / "masks" / f"{number - 1:05}.png"
    return np.asarray(Image.open(path)) == 1


def tracked(dataset: fo.Dataset) -> dict[int, np.ndarray]:
    """Masks of the first video's only track, by frame, as large as the video."""
    dataset.reload()
    sample = dataset.first()
    sample.reload()
    width, height = sample.metadata.frame_width, sample.metadata.frame_height
    found = {}
    for number, frame in sample.frames.items():
        if not frame.has_field("tracks") or not frame["tracks"]:
            continue
        (label,) = frame["tracks"].detections
        x, y, w, h = label.bounding_box
        box = (x * width, y * height, (x + w) * width, (y + h) * height)
        found[number] = paste_mask(label.mask.astype(bool), box, height, width)
    return found


@dataclass(frozen=True)
class Picture:
    """The open video in Annotate.

    Attributes:
        page: The page.
        width: Width of the video in pixels.
        height: Height of the video in pixels.
    """

    page: Any
    width: int
    height: int

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the video is on the page."""
        canvas = self.page.locator("#modal canvas").first.bounding_box()
        scale = min(canvas["width"] / self.width, canvas["height"] / self.height)
        left = canvas["x"] + (canvas["width"] - self.width * scale) / 2
        top = canvas["y"] + (canvas["height"] - self.height * scale) / 2
        return left + x * scale, top + y * scale

    def drag(self, *points: tuple[float, float]) -> None:
        """Draws through pixels of the video."""
        mouse = self.page.mouse
        mouse.move(*self.point(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.point(*point), steps=6)
        mouse.up()


def execute(page: Any, says: str) -> None:
    """Runs what a form is filled for, and waits for the summary."""
    button = page.get_by_role("button", name="Execute").first
    button.wait_for()
    page.wait_for_timeout(1500)
    button.click()
    page.get_by_text(says).first.wait_for(timeout=200_000)


def choose_flow(page: Any) -> None:
    """Chooses the propagator that takes least time."""
    page.get_by_text("auto (mobilesam)").first.click()
    page.get_by_role("option", name="flow: ").first.click()


def close(page: Any) -> None:
    """Closes a summary."""
    page.get_by_role("button", name="Done").click()
    page.get_by_role("dialog").wait_for(state="hidden")


def test_a_person_works_beside_the_picture(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    clips: Path,
    artifacts: Path,
) -> None:
    def picture(name: str) -> None:
        page.screenshot(path=artifacts / f"journey-{name}.png")

    page.set_default_timeout(30_000)
    page.goto(serve(dataset.name))
    page.locator("[data-cy=looker]").first.wait_for()
    page.get_by_role("button", name="Dismiss").click()
    page.locator("[data-cy=looker]").first.click()
    page.locator("#modal.modalon").wait_for()

    # Draw a box in Annotate, as FiftyOne has it.
    page.get_by_text("Annotate", exact=True).first.click()
    page.get_by_text("Add schema", exact=True).click()
    page.get_by_role("button", name="New field").click()
    page.get_by_placeholder("Enter field name").fill("frames.marks")
    page.get_by_role("combobox").last.click()
    page.get_by_role("option", name="Detections", exact=True).click()
    page.get_by_role("button", name="Add class").click()
    page.keyboard.type("car")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Create").click()
    page.get_by_text("Active fields").first.wait_for()
    page.wait_for_timeout(500)
    page.locator("[data-cy=close-schema-manager]").click()
    metadata = dataset.first().metadata
    count = metadata.total_frame_count
    video = Picture(page, metadata.frame_width, metadata.frame_height)
    page.locator("[data-cy=detection-mode]").click()
    x1, y1, x2, y2 = box_of_mask(truth(clips, 1))
    video.drag((x1, y1), ((x1 + x2) / 2, y2 - 20), (x2 - 1, y2))
    page.get_by_text("Edit Detection").wait_for()
    page.wait_for_timeout(1500)  # until FiftyOne has stored it
    picture("drawn")

    # Propagate without leaving the picture.
    page.get_by_text("Propagate", exact=True).first.click()
    page.get_by_text(f"1 video, 1 object, {count} frames").wait_for()
    picture("propagate")
    choose_flow(page)
    execute(page, f"track on {count} frames")
    close(page)
    before = tracked(dataset)
    assert sorted(before) == list(range(1, count + 1))
    # The drawn box is the prompt; the copies that FiftyOne held are none.
    frames = dataset.first().frames.items()
    prompted = [n for n, f in frames if f["tracks"].detections[0].keyframe]
    assert prompted == [1]
    picture("tracks")

    # The App knows new fields once the sample is opened anew.
    page.get_by_text("frames.tracks").first.wait_for()
    page.locator("[data-cy=looker]").first.click()
    page.locator("#modal.modalon").wait_for()
    page.get_by_text("Explore", exact=True).last.click()
    page.locator("#modal [data-cy='checkbox-frames.marks']").click()
    picture("explore")
