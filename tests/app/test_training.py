"""A person trains a captioner on reviewed captions of a clip, and captions with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest

from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.options import Options, fields_of
from fiftyone_regioncap.dataset.captions import read_captions
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.operations import OPERATIONS
from tests.support.app import AppPage
from tests.support.training import SMALL_MODELS, SmallModel, clip_dataset

pytestmark = [pytest.mark.app, pytest.mark.timeout(900)]

CLIP = "car-shadow"
QUICK = "dynrefer"
"""The model that is trained each time; the others take as long again each."""


@pytest.fixture
def dataset(clips: Path, fiftyone_database: str) -> Iterator[fo.Dataset]:
    if not (clips / CLIP).is_dir():
        pytest.skip(f"no folder {clips / CLIP}")
    made = clip_dataset(clips, [CLIP])
    made.name, made.persistent = "app-training", True
    yield made
    made.delete()


def fill_form(
    app: AppPage,
    name: str,
    shown: str,
    small: SmallModel,
    own: type[Options],
    values: Mapping[str, Any],
) -> None:
    """Opens an operation's form with all of its options, and fills it.

    Args:
        app: The page.
        name: Name of the operation.
        shown: Text of the model that is chosen at first, or its name and ``": "``.
        small: The model to choose.
        own: Options of the model.
        values: What to type, by the names of the options; ``weights`` of the model.
    """
    operation = OPERATIONS[name]
    (model, *_) = operation.models
    declared = (*operation.fields, *operation.settings, *fields_of(own))
    labels = {field.name: field.label for field in declared}
    labels["weights"] = f"Weights of the {model.name}"
    app.open_operator(operation.operator)
    app.page.get_by_role("switch").or_(app.page.get_by_role("checkbox")).last.click()
    app.page.get_by_text("Device", exact=True).first.wait_for()
    app.choose(shown, f"{small.captioner}: ")
    for option, value in values.items():
        app.fill_below(labels[option], str(value))


@pytest.mark.parametrize(
    "model",
    [
        name if name == QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in SMALL_MODELS
    ],
)
def test_a_person_trains_and_captions(
    dataset: fo.Dataset,
    model: str,
    golden: Path,
    checkpoint: Path,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
    tmp_path: Path,
) -> None:
    small, out = SMALL_MODELS[model], tmp_path / "out"
    base = small.weights(golden, checkpoint, tmp_path / "base")
    card = CAPTIONERS[small.captioner]
    assert card.training_options is not None
    page.goto(serve(dataset.name))
    page.get_by_text("frames.tracks").first.wait_for()

    values = {"out": out, "weights": base, "held_out": 0}
    if "max_tiles" in small.recipe:
        values["max_tiles"] = small.recipe["max_tiles"]
    fill_form(app, "train", "dam: ", small, card.training_options, values)
    page.screenshot(path=artifacts / f"training-{model}-form.png")
    app.execute("captions of 1 videos or images learned")
    page.screenshot(path=artifacts / f"training-{model}-summary.png")
    app.close()

    weights = out / "weights"
    values = {"output": "captions_new", "weights": weights, **small.captioning}
    fill_form(app, "caption", "auto (measured)", small, card.options, values)
    page.screenshot(path=artifacts / f"training-{model}-caption.png")
    app.execute(f"captioner {small.captioner}: as asked")
    page.get_by_text("captions_new").first.wait_for()
    page.screenshot(path=artifacts / f"training-{model}-captioned.png")

    dataset.reload()
    records = read_captions(dataset.first(), "captions_new")
    assert records and all(one.caption and not one.error for one in records)
    trained, _ = CAPTIONERS.load(ModelSpec(small.captioner, weights=str(weights)))
    assert {one.revision for one in records} == {trained.info.revision}
