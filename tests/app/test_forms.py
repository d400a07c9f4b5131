from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest
from PIL import Image

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.operations import OPERATIONS, Operation
from tests.support.app import AppPage, wait_until

pytestmark = pytest.mark.app


@pytest.fixture
def images(tmp_path: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """An image with a box."""
    path = tmp_path / "image.png"
    Image.new("RGB", (64, 48)).save(path)
    box = fo.Detection(label="dog", bounding_box=[0.1, 0.1, 0.5, 0.5])
    made = fo.Dataset("forms-of-images", persistent=True)
    sample = fo.Sample(filepath=str(path), regions=fo.Detections(detections=[box]))
    made.add_sample(sample)
    yield made
    made.delete()


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


def require_labels(page: Any, operation: Operation) -> None:
    """Makes sure that an open form asks for what is needed, or says what is."""
    if any(one.required and one.name == "object_id" for one in operation.fields):
        page.get_by_text("Open a video first").first.wait_for()
        return
    for field in operation.fields:
        own = field.name in ("options", "recipe_options")  # of the chosen model
        of_a_sample = field.name in ("object_id", "frame")
        hidden = field.declaration.advanced or own or of_a_sample
        if not hidden and field.kinds != (bool,):
            page.get_by_text(field.label, exact=True).first.wait_for()


def test_every_form_opens_and_shows_what_is_wrong(
    dataset: fo.Dataset,
    images: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
    tmp_path: Path,
) -> None:
    address = serve(dataset.name)
    page.goto(address)
    page.get_by_text("frames.prompts").first.wait_for()
    for operation in OPERATIONS.values():
        if operation.media and "video" not in operation.media:
            continue
        app.open_operator(operation.operator)
        require_labels(page, operation)
        app.settle()
        if not any(field.required for field in operation.fields):
            execute = page.get_by_role("button", name="Execute").first
            wait_until(execute.is_enabled, f"{operation.operator} as it is")
        page.screenshot(path=artifacts / f"form-{operation.operator}.png")
        page.keyboard.press("Escape")

    app.open_operator("propagate_masks")
    page.get_by_role("switch").or_(page.get_by_role("checkbox")).last.click()
    page.get_by_text("Patience", exact=True).first.wait_for()
    page.screenshot(path=artifacts / "form-advanced.png", full_page=True)
    app.choose("auto (mobilesam)", "sam2: ")
    page.get_by_text("Options of sam2", exact=True).first.wait_for()
    page.get_by_text("Image size", exact=True).first.scroll_into_view_if_needed()
    page.screenshot(path=artifacts / "form-other-backend.png")
    assert page.get_by_text("unknown option").count() == 0  # of the one before
    output = page.locator("input[value='frames.tracks']")
    output.fill("filepath")
    page.get_by_text("FiftyOne's own").first.wait_for()
    page.screenshot(path=artifacts / "form-wrong-value.png")
    assert page.get_by_role("button", name="Execute").first.is_disabled()

    # What fails while it runs is said in words too.
    app.open_operator("export_captions")
    dialog = page.get_by_role("dialog")
    app.fill(dialog.get_by_role("textbox").first, str(tmp_path))
    app.execute("Failed.")
    dialog.get_by_text("exists").first.wait_for()
    page.screenshot(path=artifacts / "form-failed.png")
    app.close()

    page.goto(address.replace(dataset.name, images.name))
    page.locator("[data-cy=looker]").first.wait_for()
    app.open_operator("caption_regions")
    require_labels(page, OPERATIONS["caption_regions"])
    app.settle()
    page.screenshot(path=artifacts / "form-caption_regions.png")
