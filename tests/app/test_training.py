"""A person trains a captioner on reviewed captions of a clip, and captions with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest

from tests.support.app import AppPage
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


def test_a_person_trains_and_captions(
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
    tmp_path: Path,
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    write_checkpoint(base)
    page.goto(serve(dataset.name))
    page.get_by_text("frames.tracks").first.wait_for()

    app.open_operator("train_captioner")
    page.get_by_role("switch").or_(page.get_by_role("checkbox")).last.click()
    page.get_by_text("Weights of the model", exact=True).first.wait_for()
    for label, text in (
        ("Out", str(out)),
        ("Weights of the model", str(base)),
        ("Held out", "0"),
        ("Epochs", "1"),
        ("Device", "cpu"),
    ):
        app.fill_below(label, text)
    page.screenshot(path=artifacts / "training-form.png")
    app.execute("captions of 1 videos or images learned")
    page.screenshot(path=artifacts / "training-summary.png")
    assert (out / "weights" / "README.md").is_file()

    app.close()
    app.open_operator("compare_captions")
    app.choose("auto (measured)", "dam: ")
    page.get_by_text("Weights of the captioner", exact=True).first.wait_for()
    app.fill_below("Weights of the captioner", str(out / "weights"))
    page.screenshot(path=artifacts / "training-caption.png")
    app.execute("Summary")
    page.screenshot(path=artifacts / "training-captioned.png")
    dataset.reload()
    captions = dataset.first()["captions_new"].detections
    assert captions and all(one.caption and not one.error for one in captions)
