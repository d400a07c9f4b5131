"""A person draws, propagates, corrects, goes on, describes and reviews in the App.

Its pictures are those of docs/app.md: see ``scripts/pictures.py``.
"""

from __future__ import annotations

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
from fiftyone_regioncap.dataset.appearance import GROUP
from fiftyone_regioncap.system import assets
from tests.support.app import AppPage, box_of, wait_until

# FiftyOne's Annotate closes the sample at times, so that this isn't run each time.
pytestmark = [pytest.mark.app, pytest.mark.slow, pytest.mark.timeout(1500)]


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


def drawn_boxes(dataset: fo.Dataset) -> int:
    """Number of boxes that FiftyOne has stored."""
    dataset.reload()
    return dataset.count("frames.marks.detections")


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two masks are nearly one: FiftyOne rescales those that it writes."""
    return (one & other).sum() / (one | other).sum() > 0.97


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
        first, *others = [self.point(*point) for point in points]
        mouse = self.page.mouse
        mouse.move(*first)
        mouse.down()
        for point in others:
            mouse.move(*point, steps=6)
        mouse.up()


def go_to(page: Any, share: float) -> None:
    """Moves the playhead in Annotate."""
    handle = page.get_by_test_id("timeline-playhead-handle")
    handle.wait_for()
    ruler = page.get_by_test_id("timeline-ruler")
    notice = page.get_by_text("Open the sample again")

    def moved() -> bool:
        # It lies over the ruler, for as long as it is pointed at.
        page.mouse.move(5, 5)
        notice.wait_for(state="hidden")
        box = box_of(ruler)
        wanted = box["x"] + box["width"] * share
        page.mouse.click(wanted, box["y"] + 12)
        page.wait_for_timeout(1500)
        place = box_of(handle)
        return abs(place["x"] + place["width"] / 2 - wanted) < box["width"] / 40

    wait_until(moved, "the playhead's move")


def wait_for_picture(page: Any) -> None:
    """Waits until Annotate shows the frame; what is drawn before is wrong."""
    buffering = page.get_by_test_id("timeline-controls-buffering")
    page.get_by_test_id("timeline-playhead-handle").wait_for()
    looks: list[bool] = []

    def there() -> bool:
        page.wait_for_timeout(500)
        looks.append(not buffering.is_visible())
        return len(looks) > 2 and all(looks[-3:])

    wait_until(there, "the picture")


def choose_model(app: AppPage, scene: Scene) -> None:
    """Chooses the propagator."""
    if scene.flow:
        app.choose("auto (mobilesam)", "flow: ")


@pytest.mark.parametrize("scene", ["clips", "demo"], indirect=True)
def test_a_person_works_beside_the_picture(
    scene: Scene,
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
    request: pytest.FixtureRequest,
) -> None:
    pictures = artifacts / request.node.callspec.id
    pictures.mkdir(exist_ok=True)

    def picture(name: str) -> None:
        page.screenshot(path=pictures / f"journey-{name}.png")

    address = serve(dataset.name)
    app.open(address)
    app.open_sample()

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
    app.open_sample()
    page.get_by_text("Annotate", exact=True).first.click()
    metadata = dataset.first().metadata
    count = metadata.total_frame_count
    video = Picture(page, metadata.frame_width, metadata.frame_height)
    if scene.place:
        go_to(page, scene.place)
    wait_for_picture(page)
    page.locator("[data-cy=detection-mode]").click()
    x1, y1, x2, y2 = scene.box
    corners = ((x1, y1), ((x1 + x2) / 2, y2 - 20), (x2 - 1, y2))
    drawn = page.get_by_text("Edit Detection")
    app.repeat(lambda: video.drag(*corners), drawn.is_visible)
    wait_until(lambda: drawn_boxes(dataset), "a stored box")
    picture("drawn")

    # Propagate without leaving the picture.
    page.get_by_text("Propagate", exact=True).first.click()
    page.get_by_text(f"1 video, 1 object, {count} frames").wait_for()
    picture("propagate")
    choose_model(app, scene)
    app.execute(f"track on {count} frames")
    app.close()
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
    page.locator(f"[data-cy='sidebar-group-{GROUP}-field']").wait_for()
    app.open_sample()
    go_to(page, 0.5)
    wait_for_picture(page)
    picture("opened")

    # Correct a frame with the brush, and go on from there.
    page.locator("#modal").get_by_text(scene.label, exact=True).last.click()
    page.get_by_role("button", name="Brush").click()
    x1, _, x2, bottom = box_of_mask(before[count // 2 + 1])
    stroke = ((x1 + 20, bottom), ((x1 + x2) / 2, bottom), (x2 - 20, bottom))
    saved: list[Any] = []
    page.on("response", lambda answer: saved.append(answer.request.method))
    app.repeat(lambda: video.drag(*stroke), lambda: "PATCH" in saved)
    picture("corrected")

    def edited() -> list[int]:
        corrected = tracked(dataset)
        return [n for n in before if not same(before[n], corrected[n])]

    wait_until(edited, "an edit")  # the App may save something else first
    (changed,), corrected = edited(), tracked(dataset)
    assert corrected[changed].sum() > before[changed].sum()
    page.get_by_text("Propagate from here", exact=True).first.click()
    page.get_by_text(f"Frame {changed}, edited last").wait_for()
    choose_model(app, scene)
    picture("propagate-from")
    app.execute(f"track on {count - changed + 1} frames")
    app.close()
    after = tracked(dataset)
    for n in before:
        if n <= changed:
            assert same(after[n], before[n] if n < changed else corrected[n])
        elif scene.flow:  # a better model may find what it had found before
            assert not same(after[n], corrected[n])

    # Describe the object, and look at what was said.
    page.get_by_text("Caption this object", exact=True).first.click()
    page.get_by_text("written to the new field").wait_for()
    picture("caption")
    app.execute("1 caption")
    picture("summary")
    page.get_by_role("button", name="Review", exact=True).click()
    app.close()
    page.get_by_text("0 of 1 reviewed").wait_for()
    page.get_by_alt_text("The track").wait_for()
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
