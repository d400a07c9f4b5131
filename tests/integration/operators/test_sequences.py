"""Operators on sequences of images, of which any image may be open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone.operators.executor import ExecutionContext, Executor

from fiftyone_regioncap import api
from tests.support import ROOT
from tests.support.sequences import image_samples

URI = "@fiftyone-regioncap/regioncap"
FRAMES = 4


@pytest.fixture(scope="module")
def images(
    videos: list[Path], fiftyone_database: str, tmp_path_factory: Any
) -> Iterator[fo.Dataset]:
    """The first frames of two videos as images with a track each."""
    folder = tmp_path_factory.mktemp("images")
    patch = pytest.MonkeyPatch()
    patch.setenv("REGIONCAP_CACHE", str(folder / "cache"))
    patch.setattr(fo.config, "plugins_dir", str(ROOT))
    made = fo.Dataset()
    scenes = [[*image_samples(path, folder, FRAMES, marked=1)] for path in videos[:2]]
    for images_of_a_time in reversed([*zip(*scenes, strict=True)]):
        made.add_samples(images_of_a_time, progress=False)
    view = made.group_by("scene", order_by="number")
    api.propagate(view, prompts="prompts", propagator="flow", progress=False)
    made.reload()
    yield made
    made.delete()
    patch.undo()


def context(
    name: str, images: fo.Dataset, opened: int, *, selected: bool = False, **params: Any
) -> ExecutionContext:
    """What the App calls an operator with beside an image of the first scene."""
    view = images.group_by("scene", order_by="number")
    scene = images.values("scene")[0]
    match = (fo.ViewField("scene") == scene) & (fo.ViewField("number") == opened)
    sample = images.match(match).first()
    label = {
        "label_id": sample.tracks.detections[0].id,
        "sample_id": sample.id,
        "field": "tracks",
    }
    request = {
        "dataset_name": images.name,
        "view": view._serialize(),
        "current_sample": sample.id,
        "selected_labels": [label] * selected,
        "params": params,
    }
    return ExecutionContext(request, executor=Executor(), operator_uri=f"{URI}/{name}")


def choices(name: str, asked: ExecutionContext) -> dict[str, dict[str, str]]:
    """What the form offers to choose, by input: texts by value."""
    inputs = foo.get_operator(f"{URI}/{name}").resolve_input(asked).to_json()
    return {
        key: {c["value"]: c["label"] for c in one["view"].get("choices", ())}
        for key, one in inputs["type"]["properties"].items()
        if one.get("view")
    }


@pytest.mark.parametrize("opened", [0, FRAMES - 1], ids=["the first", "the last"])
@pytest.mark.parametrize("params", [{}, {"tracks": "tracks"}], ids=["new", "filled"])
@pytest.mark.parametrize("name", ["propagate_from_here", "split_track"])
def test_the_objects_of_the_sequence_are_offered(
    images: fo.Dataset, name: str, opened: int, params: dict[str, Any]
) -> None:
    found = choices(name, context(name, images, opened, **params))
    assert found["object_id"] == {"7": "7: disc"}
    assert "sample" in found["scope"] and "objects" not in found["scope"]
    found = choices(name, context(name, images, opened, selected=True, **params))
    assert found["object_id"] == {"7": "7: disc"}
    assert found["frame"] == {str(opened): f"Frame {opened + 1}, selected"}


def test_a_track_of_the_sequence_is_changed(images: fo.Dataset) -> None:
    chosen = {"tracks": "tracks", "object_id": 7, "frame": 2, "new_id": 9}
    asked = context("split_track", images, FRAMES - 1, scope="sample", **chosen)
    messages = list(foo.get_operator(f"{URI}/split_track").execute(asked))
    assert "failed" not in str(messages[-1].body.params).lower()
    images.reload()
    scene = images.values("scene")[0]
    for sample in images:
        (label,) = sample.tracks.detections
        split = sample.scene == scene and sample.number >= 2
        assert label.index == (9 if split else 7)
