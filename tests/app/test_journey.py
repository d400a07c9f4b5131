"""A person draws, propagates, corrects, goes on, describes and reviews in the App.

Its pictures are those of docs/app.md: see ``scripts/pictures.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap.cli import demo
from fiftyone_regioncap.core.types import box_of_mask, paste_mask
from fiftyone_regioncap.system import assets

pytestmark = [pytest.mark.app, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Scene:
    """What is drawn.

    Attributes:
        video: The video that is opened.
        label: Class of the object.
        box: Box around the object, in pixels.
        place: Share of the video at which it is drawn.
        flow: Whether it is followed by the model that takes least time.
    """

    video: Path
    label: str
    box: tuple[float, float, float, float]
    place: float = 0.0
    flow: bool = True


@pytest.fixture
def scene(request: pytest.FixtureRequest) -> Scene:
    """An annotated clip, or the demo's, which may be shown in documentation."""
    if request.param == "demo":
        rabbit = demo.PROMPTS[0]
        assert rabbit.box is not None
        video = assets.fetch(demo.CLIP)
        return Scene(video, "rabbit", rabbit.box, (rabbit.frame + 0.5) / 132, False)
    clip = request.getfixturevalue("clips") / "car-shadow"
    mask = np.asarray(Image.open(clip / "masks" / "00000.png")) == 1
    return Scene(clip / "clip.mp4", "car", box_of_mask(mask))


@pytest.fixture
def dataset(
    scene: Scene, videos: list[Path], fiftyone_database: str
) -> Iterator[fo.Dataset]:
    """Videos of one's own, on which nothing is marked yet."""
    assets.fetch("mobile_sam.pt")
    made = fo.Dataset("app-journey", persistent=True)
    made.add_samples([fo.Sample(filepath=str(p)) for p in (scene.video, videos[0])])
    made.compute_metadata()
    yield made
    made.delete()


def schemas(dataset: fo.Dataset) -> dict[str, Any]:
    """What Annotate lets people draw, by field, as it is in the database now."""
    dataset.reload()
    return dataset.label_schemas or {}


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.2)


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


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two masks are nearly one: FiftyOne rescales those that it writes."""
    return (one & other).sum() / (one | other).sum() > 0.97


def box_of(locator: Any) -> dict[str, float]:
    """Where something is on the page, once it is laid out, which may be anew."""
    found: list[dict[str, float]] = []

    def look() -> bool:
        found.extend(filter(None, [locator.bounding_box()]))
        return bool(found)

    wait_until(look)
    return found[0]


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
        canvas = box_of(self.page.locator("#modal canvas").first)
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


def open_sample(page: Any) -> None:
    """Opens the first video."""
    page.locator("[data-cy=looker]").first.click()
    page.locator("#modal.modalon").wait_for()


def go_to(page: Any, share: float) -> None:
    """Moves the playhead in Annotate."""
    page.get_by_test_id("timeline-playhead-handle").wait_for()
    page.wait_for_timeout(1500)  # the frame at hand is drawn
    box = box_of(page.get_by_test_id("timeline-ruler"))
    page.mouse.click(box["x"] + box["width"] * share, box["y"] + 12)
    page.wait_for_timeout(1500)


def choose_model(page: Any, scene: Scene) -> None:
    """Chooses the propagator."""
    if not scene.flow:
        return
    page.get_by_text("auto (mobilesam)").first.click()
    page.get_by_role("option", name="flow: ").first.click()


def close(page: Any) -> None:
    """Closes a summary."""
    page.get_by_role("button", name="Done").click()
    page.get_by_role("dialog").wait_for(state="hidden")


@pytest.mark.parametrize(
    "scene", ["clips", pytest.param("demo", marks=pytest.mark.slow)], indirect=True
)
def test_a_person_works_beside_the_picture(
    scene: Scene,
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    artifacts: Path,
    request: pytest.FixtureRequest,
) -> None:
    pictures = artifacts / request.node.callspec.id
    pictures.mkdir(exist_ok=True)

    def picture(name: str) -> None:
        page.screenshot(path=pictures / f"journey-{name}.png")

    page.set_default_timeout(30_000)
    address = serve(dataset.name)
    page.goto(address)
    page.locator("[data-cy=looker]").first.wait_for()
    page.get_by_role("button", name="Dismiss").click()
    open_sample(page)

    # Draw a box in Annotate, as FiftyOne has it.
    page.get_by_text("Annotate", exact=True).first.click()
    page.get_by_text("Add schema", exact=True).click()
    page.get_by_role("button", name="New field").click()
    page.get_by_placeholder("Enter field name").fill("frames.marks")
    page.get_by_role("combobox").last.click()
    page.get_by_role("option", name="Detections", exact=True).click()
    page.get_by_role("button", name="Add class").click()
    page.keyboard.type(scene.label)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Create").click()
    wait_until(lambda: "frames.marks" in schemas(dataset))
    # FiftyOne closes the sample here at times, as it learns of the field.
    page.goto(address)
    page.locator("[data-cy=looker]").first.wait_for()
    open_sample(page)
    page.get_by_text("Annotate", exact=True).first.click()
    metadata = dataset.first().metadata
    count = metadata.total_frame_count
    video = Picture(page, metadata.frame_width, metadata.frame_height)
    page.wait_for_timeout(1500)  # until the picture is there
    if scene.place:
        go_to(page, scene.place)
    page.locator("[data-cy=detection-mode]").click()
    x1, y1, x2, y2 = scene.box
    video.drag((x1, y1), ((x1 + x2) / 2, y2 - 20), (x2 - 1, y2))
    page.get_by_text("Edit Detection").wait_for()
    page.wait_for_timeout(1500)  # until FiftyOne has stored it
    picture("drawn")

    # Propagate without leaving the picture.
    page.get_by_text("Propagate", exact=True).first.click()
    page.get_by_text(f"1 video, 1 object, {count} frames").wait_for()
    picture("propagate")
    choose_model(page, scene)
    execute(page, f"track on {count} frames")
    close(page)
    before = tracked(dataset)
    assert sorted(before) == list(range(1, count + 1))
    # The drawn box is the prompt; the copies that FiftyOne held are none.
    frames = dataset.first().frames.items()
    prompted = [n for n, f in frames if f["tracks"].detections[0].keyframe]
    assert prompted == [int(scene.place * count) + 1]
    picture("tracks")

    # The App knows new fields once the sample is opened anew, in Annotate as before,
    # where the tracks are shown in place of the prompts.
    page.get_by_text("frames.tracks").first.wait_for()
    open_sample(page)
    go_to(page, 0.5)
    picture("opened")

    # Correct a frame with the brush, and go on from there.
    page.locator("#modal").get_by_text(scene.label, exact=True).last.click()
    page.get_by_role("button", name="Brush").click()
    x1, _, x2, bottom = box_of_mask(before[count // 2 + 1])
    with page.expect_response(lambda answer: answer.request.method == "PATCH"):
        video.drag((x1 + 20, bottom), ((x1 + x2) / 2, bottom), (x2 - 20, bottom))
    page.wait_for_timeout(1000)
    picture("corrected")

    def edited() -> list[int]:
        corrected = tracked(dataset)
        return [n for n in before if not same(before[n], corrected[n])]

    wait_until(lambda: bool(edited()))  # the App may save something else first
    (changed,), corrected = edited(), tracked(dataset)
    assert corrected[changed].sum() > before[changed].sum()
    page.get_by_text("Propagate from here", exact=True).first.click()
    page.get_by_text(f"Frame {changed}, edited last").wait_for()
    choose_model(page, scene)
    picture("propagate-from")
    execute(page, f"track on {count - changed + 1} frames")
    close(page)
    after = tracked(dataset)
    for n in before:
        kept = before[n] if n < changed else corrected[n]
        assert same(after[n], kept) == (n <= changed)

    # Describe the object, and look at what was said.
    page.get_by_text("Caption this object", exact=True).first.click()
    page.get_by_text("written to the new field").wait_for()
    picture("caption")
    execute(page, "1 caption")
    picture("summary")
    page.get_by_role("button", name="Review", exact=True).click()
    close(page)
    page.get_by_text("0 of 1 reviewed").wait_for()
    page.wait_for_timeout(2000)  # until its pictures are there
    picture("review")
    page.get_by_role("button", name="Accept", exact=True).click()
    page.get_by_text("1 of 1 reviewed").wait_for()
    dataset.reload()
    (caption,) = dataset.first()["captions"].detections
    assert scene.label in caption.caption and caption.review == "accepted"

    # All of it is listed.
    page.get_by_text("Caption jobs", exact=True).first.click()
    for label in ("Propagate masks", "Propagate from here", "Caption tracks"):
        page.get_by_text(label, exact=True).last.wait_for()
    picture("jobs")

    # Somebody who comes later sees tracks and captions, and no prompts.
    page.goto(address)
    page.locator("[data-cy=tag-captions]").first.wait_for()
    page.wait_for_timeout(1000)
    picture("later")
