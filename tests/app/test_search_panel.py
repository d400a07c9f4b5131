"""A person looks for captions in the App's panel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest

from fiftyone_regioncap.core.types import FrameMasks, ObjectMask, Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.propagation.base import Frames
from fiftyone_regioncap.video.reader import VideoReader
from tests.support.app import AppPage

pytestmark = pytest.mark.app

TEXTS = {
    1: "A silver car drives <b>past</b> {{shops}} on the other side of a wide road, "
    "and stops behind a white one that waits for pedestrians to cross.",
    2: "A red bicycle leans against a wall.",
    3: "Two people walk behind a silver car.",
}


@pytest.fixture
def dataset(clips: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """Three captions on a real street."""
    clip = clips / "street-suv" / "clip.mp4"
    made, _, _ = datasets.add_videos(
        "app-search", [clip], [Prompt(1, 0, box=(20.0, 60.0, 160.0, 220.0))]
    )
    sample = made.first()
    with VideoReader(clip) as reader:
        write_boxes(sample, reader)
    write_captions(
        sample,
        "captions",
        [
            CaptionRecord(index, (2, 7), label=f"object {index}", caption=text)
            for index, text in TEXTS.items()
        ],
        tracks_field="tracks",
    )
    yield made
    made.delete()


def write_boxes(sample: fo.Sample, reader: Frames) -> None:
    """A block for each object, side by side."""
    with TrackWriter(sample, "tracks") as writer:
        for frame in range(10):
            masks = {}
            for index in TEXTS:
                image = reader[frame]
                mask = image[..., 0] < 0
                mask[100:200, 150 * index : 150 * index + 100] = True
                masks[index] = ObjectMask(mask, 0.9)
            writer.write(FrameMasks(frame, masks))


def test_a_person_searches(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
) -> None:
    app.open(serve(dataset.name))
    app.open_panel("Caption search")
    panel = page.locator("[data-cy=panel-content-caption_search]")
    app.fill(panel.get_by_role("textbox").first, '"silver car" -people')
    panel.get_by_role("button", name="Search whole dataset").click()
    page.get_by_text("1 with words of the query").first.wait_for()
    page.get_by_text("object 1, street-suv/clip.mp4, frames 3 to 8").first.wait_for()
    assert panel.locator("img").count() == 1
    assert not panel.get_by_text(TEXTS[3]).count()
    page.get_by_text("1 clip", exact=True).wait_for()
    page.screenshot(path=artifacts / "search.png")

    # The next search looks at the whole dataset, not inside what was found.
    app.fill(panel.get_by_role("textbox").first, "bicycle")
    panel.get_by_role("button", name="Search whole dataset").click()
    panel.get_by_text(TEXTS[2]).first.wait_for()
    page.get_by_text("1 with words of the query").first.wait_for()
    page.screenshot(path=artifacts / "search-again.png")

    # The grid has the same; a row opens it there.
    panel.get_by_role("button", name="Open").first.click()
    page.locator("#modal.modalon").wait_for()
    page.screenshot(path=artifacts / "search-opened.png")
