from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.operations import OPERATIONS

pytestmark = pytest.mark.app


@pytest.fixture
def dataset(videos: list[Path], fiftyone_database: str) -> Iterator[fo.Dataset]:
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
    made, _, _ = datasets.add_videos("forms", videos[:1], prompts)
    made.persistent = True
    api.propagate_and_caption(
        made, propagator="flow", captioner="measured", progress=False
    )
    yield made
    made.delete()


def test_every_form_opens_and_shows_what_is_wrong(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    open_operator: Callable[[Any, str], None],
    artifacts: Path,
) -> None:
    page.goto(serve(dataset.name))
    page.get_by_text("frames.prompts").first.wait_for()
    videos = [one for one in OPERATIONS.values() if "video" in one.media]
    for operation in videos:
        open_operator(page, operation.operator)
        page.screenshot(path=artifacts / f"form-{operation.operator}.png")
        for field in operation.fields:
            own = field.name in ("options", "recipe_options")  # of the chosen model
            hidden = field.declaration.advanced or own
            if not hidden and field.kinds != (bool,):
                page.get_by_text(field.label, exact=True).first.wait_for()
        page.keyboard.press("Escape")

    open_operator(page, "propagate_masks")
    page.get_by_role("switch").or_(page.get_by_role("checkbox")).last.click()
    page.get_by_text("Patience", exact=True).first.wait_for()
    page.screenshot(path=artifacts / "form-advanced.png", full_page=True)
    page.get_by_text("auto (mobilesam)").first.click()
    page.get_by_role("option", name="sam2: ").first.click()
    page.get_by_text("Options of sam2", exact=True).first.wait_for()
    page.get_by_text("Image size", exact=True).first.scroll_into_view_if_needed()
    page.screenshot(path=artifacts / "form-other-backend.png")
    output = page.locator("input[value='frames.tracks']")
    output.fill("filepath")
    page.get_by_text("FiftyOne's own").first.wait_for()
    page.screenshot(path=artifacts / "form-wrong-value.png")
    assert page.get_by_role("button", name="Execute").first.is_disabled()
