"""A person reviews captions in the App's panel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

import fiftyone_regioncap as frc
from fiftyone_regioncap.core.types import Prompt, box_of_mask
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.review.preferences import choice
from tests.support.app import AppPage

pytestmark = pytest.mark.app

HOSTILE = "A *silver* <b>SUV</b> {{label}} at [the](http://curb) — 🚙 سيارة"
OTHER = "A *silver* <b>sedan</b> {{label}} at [the](http://curb)"


@pytest.fixture
def dataset(clips: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """A real street: a car, and a part of the pavement, captioned in two windows."""
    clip = clips / "street-suv"
    mask = np.asarray(Image.open(clip / "masks" / "00002.png")) == 1
    made, _, _ = datasets.add_videos(
        "app-review",
        [clip / "clip.mp4"],
        [
            Prompt(3, 2, box=box_of_mask(mask), label="car"),
            Prompt(8, 2, box=(20.0, 300.0, 160.0, 420.0), label="pavement"),
        ],
    )
    frc.propagate(made, propagator="flow", progress=False)
    frc.caption(made, captioner="measured", window=6, progress=False)
    sample = made.first()
    write_captions(
        sample,
        "other_captions",
        [CaptionRecord(3, (0, 11), label="car", caption=OTHER, confidence=0.4)],
    )
    yield made
    made.delete()


def labels(dataset: fo.Dataset) -> list[fo.TemporalDetection]:
    """The captions as they are in the database now."""
    dataset.reload()
    return dataset.first()["captions"].detections


def press_access_key(page: Any, key: str) -> None:
    """Alt and a letter; what Playwright's own keyboard sends is no access key."""
    session = page.context.new_cdp_session(page)
    for kind in ("keyDown", "keyUp"):
        session.send(
            "Input.dispatchKeyEvent",
            {
                "type": kind,
                "modifiers": 1,
                "key": key,
                "code": f"Key{key.upper()}",
                "windowsVirtualKeyCode": ord(key.upper()),
                "text": key,
                "unmodifiedText": key,
            },
        )


def test_a_person_reviews_captions(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
) -> None:
    before = [label.caption for label in labels(dataset)]
    assert len(before) == 4
    app.open(serve(dataset.name))
    app.open_panel("Region captions")
    page.get_by_text("0 of 4").wait_for()
    page.get_by_alt_text("The track").wait_for()

    # Accept by a click, which goes on to the next one.
    page.get_by_role("button", name="Accept", exact=True).click()
    page.get_by_text("1 of 4").wait_for()
    assert labels(dataset)[0].review == "accepted"
    page.screenshot(path=artifacts / "review.png")

    # Edit, by keys alone.
    press_access_key(page, "e")
    text = page.get_by_role("dialog").locator("textarea").first
    text.wait_for()
    assert text.input_value() == before[1]
    page.get_by_role("dialog").get_by_alt_text("What is described").wait_for()
    app.fill(text, HOSTILE)
    page.screenshot(path=artifacts / "review-edit.png")
    page.keyboard.press("Control+Enter")
    page.get_by_text("2 of 4").wait_for()
    edited = labels(dataset)[1]
    assert (edited.review, edited.caption) == ("edited", HOSTILE)
    assert edited.source_caption == before[1]
    mirrored = {
        label.caption
        for number in range(edited.support[0], edited.support[1] + 1)
        for label in dataset.first().frames[number]["tracks"].detections
        if label.index == edited.index
    }
    assert mirrored == {HOSTILE}

    # Reject and undo.
    press_access_key(page, "r")
    page.get_by_text("3 of 4").wait_for()
    rejected = labels(dataset)[2]
    assert rejected.review == "rejected"
    assert [one["after"]["review"] for one in rejected.review_history] == ["rejected"]
    page.reload()
    page.locator("[data-cy=tag-captions]").first.wait_for()
    page.get_by_text("3 of 4").wait_for()
    press_access_key(page, "u")
    page.get_by_text("2 of 4").wait_for()
    assert labels(dataset)[2].review == "unreviewed"

    # Everything, beside the other captioner: what people wrote is shown as text.
    page.get_by_role("button", name="Edited", exact=True).click()
    page.get_by_text(HOSTILE).first.wait_for()
    page.get_by_role("button", name="Fields and order").click()
    dialog = page.get_by_role("dialog")
    app.choose("nothing", "other_captions")
    dialog.get_by_role("button", name="Show", exact=True).click()
    page.get_by_text("the model said").wait_for()
    page.locator("strong", has_text="sedan").first.wait_for()
    page.screenshot(path=artifacts / "review-compare.png")

    # A click on the picture opens the sample.
    page.get_by_alt_text("The track").click()
    page.locator("#modal.modalon").wait_for()
    page.keyboard.press("Escape")
    page.locator("#modal.modalon").wait_for(state="hidden")
    page.get_by_role("button", name="Take the other").wait_for()

    # The rest of the view at once.
    page.get_by_role("button", name="Accept all unreviewed").click()
    page.get_by_role("dialog").get_by_text("unreviewed captions").wait_for()
    page.get_by_role("button", name="Yes", exact=True).click()
    page.get_by_text("4 of 4").wait_for()
    reviews = [label.review for label in labels(dataset)]
    assert reviews == ["accepted", "edited", "accepted", "accepted"]
    press_access_key(page, "u")
    page.get_by_text("2 of 4").wait_for()
    reviews = [label.review for label in labels(dataset)]
    assert reviews == ["accepted", "edited", "unreviewed", "unreviewed"]


def test_a_person_says_which_caption_is_better(
    dataset: fo.Dataset, serve: Callable[[str], str], page: Any, app: AppPage
) -> None:
    app.open(serve(dataset.name))
    app.open_panel("Region captions")
    page.get_by_text("0 of 4").wait_for()
    page.get_by_role("button", name="Fields and order").click()
    dialog = page.get_by_role("dialog")
    app.choose("nothing", "other_captions")
    app.choose("No", "Yes, without knowing which is which", "blind")
    dialog.get_by_role("button", name="Show", exact=True).click()
    page.get_by_text("First", exact=True).wait_for()
    assert page.get_by_text("the model said").count() == 0
    page.get_by_role("button", name="Left is better").click()
    page.get_by_text("Preferred so far: 1").wait_for()
    label = labels(dataset)[0]
    assert label["preferred"] == choice(label.id, 0)


def test_a_panel_follows_the_video(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
) -> None:
    windows = [label for label in labels(dataset) if label.index == 3]
    app.open(serve(dataset.name))
    app.open_sample()
    app.split_beside("Tracks")
    row = page.locator("[data-regioncap-instance]").first
    row.get_by_text(windows[0].caption).wait_for()

    # A click on a window's frames goes there, and its caption is shown.
    first, last = windows[1].support
    row.get_by_text(f"{first}-{last}", exact=True).click()
    page.get_by_text("0:01.00").first.wait_for()
    row.get_by_text(windows[1].caption).wait_for()
    row.hover()
    page.screenshot(path=artifacts / "tracks.png")

    # The later part becomes an object of its own, with its captions.
    row.get_by_text("Split", exact=True).click()
    dialog = page.get_by_role("dialog")
    app.fill(dialog.locator("input[type=number]").first, str(first - 1))
    app.execute("labels renumbered")
    numbers = {label.index for label in labels(dataset)}
    assert numbers == {1, 3, 8}
