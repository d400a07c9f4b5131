"""What is wrong with a job's fields is said before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.operations import OPERATIONS, Operation

METADATA = fo.VideoMetadata(
    frame_width=60, frame_height=40, frame_rate=10.0, total_frame_count=20
)

INPUTS = ("prompts", "tracks", "captions", "regions")
OUTPUTS = ("new prompts", "new tracks", "new captions", "new parts", "new heatmaps")


@pytest.fixture(scope="module")
def datasets(fiftyone_database: str) -> Iterator[Callable[[str], fo.Dataset]]:
    """A video and an image with fields of all kinds, and one of text, ``plain``."""
    made = {"video": fo.Dataset(), "image": fo.Dataset()}
    box = fo.Detection(bounding_box=[0, 0, 0.5, 0.5], index=1)
    boxes = fo.Detections(detections=[box])
    video = fo.Sample(filepath="/nowhere/video.mp4", metadata=METADATA, plain="text")
    video.frames[1] = fo.Frame(prompts=boxes, tracks=boxes.copy(), plain="text")
    spans = [fo.TemporalDetection(label="a", support=[1, 2])]
    video["captions"] = fo.TemporalDetections(detections=spans)
    made["video"].add_sample(video)
    image = fo.Sample(filepath="/nowhere/image.png", plain="text", regions=boxes.copy())
    made["image"].add_sample(image)
    yield made.__getitem__
    for dataset in made.values():
        dataset.delete()


def wrong_fields() -> Iterator[Any]:
    """Yields each operation with models, and a field of it that it can't have."""
    for operation in OPERATIONS.values():
        for field in operation.fields if operation.models and operation.media else ():
            if field.declaration.picker in (*INPUTS, *OUTPUTS):
                is_input = field.declaration.picker in INPUTS
                name = "absent" if is_input else "plain"
                yield pytest.param(
                    operation, {field.name: name}, id=f"{operation.name}-{field.name}"
                )


@pytest.mark.parametrize(("operation", "wrong"), list(wrong_fields()))
def test_a_wrong_field_costs_no_loading(
    datasets: Callable[[str], fo.Dataset],
    operation: Operation,
    wrong: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    loaded = []
    monkeypatch.setattr(ModelRegistry, "load", lambda *spec: loaded.append(spec))
    dataset = datasets(operation.media[0])
    schema = dataset.get_field_schema(flat=True)
    values: dict[str, Any] = {
        model.name: "patchioner" if model.name in ("captioner", "model") else "flow"
        for model in operation.models
        if not model.optional
    }
    required = {"prompts": "frames.prompts", "field": "regions", "out": str(tmp_path)}
    values |= {
        field.name: required[field.name]
        for field in operation.fields
        if field.required and field.name in required
    }
    if operation.name == "train" and "captions" in wrong:
        wrong = {"captions": ["absent"]}
    if operation.name == "propagate_and_caption":
        values["tracks"] = "fresh"
    if "captioner" in values:
        values["captioner_weights"] = str(tmp_path)
    if "heatmap" in wrong:
        values["query"] = "a dog"
    if "model" in values:
        values["model_weights"] = str(tmp_path)
    with pytest.raises(FieldError, match=r"plain|absent"):
        getattr(api, operation.name)(dataset, **values | wrong, progress=False)
    assert not loaded
    assert dataset.get_field_schema(flat=True) == schema  # nothing is declared either
