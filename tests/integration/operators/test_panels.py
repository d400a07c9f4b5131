"""Panels beside an open sample, a whole one or a clip of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone.operators.executor import ExecutionContext, Executor

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from tests.support import ROOT

URI = "@fiftyone-regioncap/regioncap"


@pytest.fixture(scope="module")
def dataset(videos: list[Path], fiftyone_database: str) -> Iterator[fo.Dataset]:
    """Two videos with a track that is described in windows of 8 frames."""
    patch = pytest.MonkeyPatch()
    patch.setattr(fo.config, "plugins_dir", str(ROOT))
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
    made, _, _ = datasets.add_videos("panels", videos, prompts)
    api.propagate(made, propagator="flow", progress=False)
    api.caption(made, captioner="measured", window=8, progress=False)
    yield made
    made.delete()
    patch.undo()


def shown(
    panel: str, view: fo.DatasetView, sample: str, method: str = "on_load"
) -> str:
    """What a panel tells the App on an event, as text."""
    request: dict[str, Any] = {
        "dataset_name": view.dataset_name,
        "view": view._serialize(),
        "current_sample": sample,
        "params": {"panel_id": panel, "panel_state": {}, "__method__": "on_load"},
    }
    uri = f"{URI}/{panel}"
    context = ExecutionContext(request, executor=Executor(), operator_uri=uri)
    foo.get_operator(uri).execute(context)
    return str(context.executor.to_json())


@pytest.mark.parametrize(
    ("panel", "says"),
    [
        ("region_tracks", "#7 disc, frames 1 to 24"),
        ("region_captions", "of 3** reviewed"),
        ("region_jobs", "Caption tracks"),
    ],
)
def test_a_whole_video(dataset: fo.Dataset, panel: str, says: str) -> None:
    assert says in shown(panel, dataset.view(), dataset.last().id)


@pytest.mark.parametrize(
    ("panel", "says"),
    [
        ("region_tracks", "#7 disc, frames 1 to 24"),
        ("region_captions", "frames 9 to 16"),
        ("region_jobs", "Caption tracks"),
    ],
)
def test_a_clip_of_a_video(dataset: fo.Dataset, panel: str, says: str) -> None:
    clips = dataset.to_clips("captions")
    (second,) = [
        clip.id
        for clip in clips
        if clip.support == [9, 16] and clip.sample_id == dataset.last().id
    ]
    text = shown(panel, clips, second)
    assert says in text
    if panel == "region_tracks":  # what is said of the clip's first frame
        label = next(
            one
            for one in dataset.last()["captions"].detections
            if one.support == [9, 16]
        )
        assert label.caption[:20] in text.replace("\\\\", "")
