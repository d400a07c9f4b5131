"""A person trains a captioner on reviewed captions of a clip, and captions with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest

from tests.support.dam import write_checkpoint
from tests.support.training import clip_dataset

pytestmark = [pytest.mark.app, pytest.mark.slow, pytest.mark.timeout(900)]

CLIP = "car-shadow"


@pytest.fixture
def dataset(clips: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    made = clip_dataset(clips, [CLIP])
    made.name, made.persistent = "app-training", True
    yield made
    made.delete()


def fill(page: Any, label: str, text: str) -> None:
    """Fills the input below a label."""
    field = page.get_by_role("dialog").get_by_text(label, exact=True).first
    field.scroll_into_view_if_needed()
    field.locator("xpath=following::input[1]").fill(text)
    page.wait_for_timeout(1500)  # the form comes anew with each change


def execute(page: Any, says: str) -> None:
    """Runs what a form is filled for, and waits for the summary."""
    page.wait_for_timeout(2000)
    page.get_by_role("button", name="Execute").first.click()
    page.get_by_text(says).first.wait_for(timeout=300_000)


def test_a_person_trains_and_captions(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    open_operator: Callable[[Any, str], None],
    artifacts: Path,
    tmp_path: Path,
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    write_checkpoint(base)
    page.set_default_timeout(60_000)
    page.goto(serve(dataset.name))
    page.get_by_text("frames.tracks").first.wait_for()

    open_operator(page, "train_captioner")
    page.get_by_role("switch").or_(page.get_by_role("checkbox")).last.click()
    page.get_by_text("Weights of the model", exact=True).first.wait_for()
    for label, text in (
        ("Out", str(out)),
        ("Weights of the model", str(base)),
        ("Held out", "0"),
        ("Epochs", "1"),
        ("Device", "cpu"),
    ):
        fill(page, label, text)
    page.screenshot(path=artifacts / "training-form.png")
    execute(page, "captions of 1 videos or images learned")
    page.screenshot(path=artifacts / "training-summary.png")
    assert (out / "weights" / "README.md").is_file()

    page.get_by_role("button", name="Done").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.wait_for_timeout(1000)
    open_operator(page, "compare_captions")
    page.get_by_text("auto (measured)").first.click()
    page.get_by_role("option", name="dam: ").first.click()
    page.get_by_text("Weights of the captioner", exact=True).first.wait_for()
    fill(page, "Weights of the captioner", str(out / "weights"))
    page.get_by_text("Weights of the captioner", exact=True).first.wait_for()
    page.screenshot(path=artifacts / "training-caption.png")
    execute(page, "Summary")
    page.screenshot(path=artifacts / "training-captioned.png")
    dataset.reload()
    captions = dataset.first()["captions_new"].detections
    assert captions and all(one.caption and not one.error for one in captions)
