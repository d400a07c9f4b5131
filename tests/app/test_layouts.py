"""Panels, dialogs and forms at three widths, in light and dark, on one's own videos.

The pictures are for people to look at. That nothing covers a button and that nothing
is cut off is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import Prompt, box_of_mask
from fiftyone_regioncap.dataset import videos as datasets
from tests.support.app import AppPage

pytestmark = [pytest.mark.app, pytest.mark.slow, pytest.mark.timeout(1500)]

WIDTHS = (2500, 1500, 1100)
HEIGHT = 950

REACHED = """button => {
  const box = button.getBoundingClientRect();
  const y = (box.top + box.bottom) / 2;
  return [box.left + 2, (box.left + box.right) / 2, box.right - 2].every((x) => {
    const top = document.elementFromPoint(x, y);
    return top && (button.contains(top) || top.contains(button));
  });
}"""
"""Whether a click on the left, the middle or the right of a button reaches it."""

CUT_OFF = "panel => panel.scrollWidth - panel.clientWidth > 1"


@pytest.fixture
def dataset(clips: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """Two real streets, each with objects that were tracked and described."""
    for name, number, label in (
        ("car-shadow", 0, "car"),
        ("street-suv", 2, "a car that waits at the curb"),
    ):
        clip = clips / name
        mask = np.asarray(Image.open(clip / "masks" / f"{number:05}.png")) == 1
        made, _, _ = datasets.add_videos(
            "app-layouts",
            [clip / "clip.mp4"],
            [
                Prompt(1, number, box=box_of_mask(mask), label=label),
                Prompt(2, number, box=(20.0, 300.0, 160.0, 420.0), label="pavement"),
            ],
        )
    made.persistent = True
    api.propagate(made, propagator="flow", progress=False)
    for output in ("captions", "others"):
        api.caption(made, captioner="measured", output=output, window=6, progress=False)
    yield made
    made.delete()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_everything_has_its_place(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
    scheme: str,
) -> None:
    def look(name: str, panel: Any = None) -> None:
        """Looks at what is open, at each width."""
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": HEIGHT})
            page.wait_for_timeout(1000)  # until it is laid out anew
            page.screenshot(path=artifacts / f"layout-{scheme}-{name}-{width}.png")
            if panel is None:
                continue
            assert not panel.evaluate(CUT_OFF), f"{name} is cut off at {width}"
            for button in panel.get_by_role("button").all():
                button.scroll_into_view_if_needed()
                text = button.inner_text() or button.get_attribute("title")
                assert button.evaluate(REACHED), f"{name}: {text} at {width}"
        page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})

    def panel_of(name: str) -> Any:
        return page.locator(f"[data-cy=panel-content-{name}]")

    page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
    app.open(serve(dataset.name))
    if scheme == "light":
        page.get_by_title("Light mode").click()

    # Beside the grid.
    app.open_panel("Region captions")
    panel = panel_of("region_captions")
    panel.get_by_alt_text("The track").wait_for()
    look("review", panel)
    panel.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_role("dialog").locator("textarea").first.wait_for()
    look("edit")
    page.keyboard.press("Escape")
    panel.get_by_role("button", name="Fields and order").click()
    app.choose("nothing", "others")
    look("fields")
    page.get_by_role("dialog").get_by_role("button", name="Show", exact=True).click()
    panel.get_by_text("others", exact=True).first.wait_for()
    look("compare", panel)
    app.open_panel("Caption search")
    panel = panel_of("caption_search")
    app.fill(panel.get_by_role("textbox").first, "car")
    panel.get_by_role("button", name="Search whole dataset").click()
    panel.get_by_role("button", name="Open").first.wait_for()
    look("search", panel)
    app.open_panel("Caption jobs")
    panel = panel_of("region_jobs")
    panel.get_by_text("Caption tracks").first.wait_for()
    look("jobs", panel)
    app.open_operator("caption_tracks")
    page.get_by_role("switch").or_(page.get_by_role("checkbox")).last.click()
    app.settle()
    look("form")
    page.keyboard.press("Escape")

    # Over an open sample that has others on both sides, or on the left.
    page.goto(page.url.partition("?")[0])
    page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
    page.locator("[data-cy=looker]").nth(1).click()
    page.locator("[data-cy=modal-looker-container]").wait_for()
    for name, title in (
        ("region_captions", "Region captions"),
        ("region_tracks", "Tracks"),
        ("region_jobs", "Caption jobs"),
    ):
        page.locator("#modal").get_by_text(title, exact=True).first.click()
        panel = panel_of(name).last
        panel.get_by_role("button").first.wait_for()
        look(f"sample-{name}", panel)
    app.split_beside("Tracks")
    look("sample-beside", panel_of("region_tracks").last)
