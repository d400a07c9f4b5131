from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import BackendError, WeightsError
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.system import assets


@pytest.fixture
def dataset(videos: list[Path], fiftyone_database: str) -> Iterator[fo.Dataset]:
    made, _ = datasets.open_videos("proposing", videos)
    yield made
    made.delete()


def test_objects_that_nobody_marked_are_found_and_followed(dataset):
    try:
        assets.fetch("mobile_sam.pt")
    except WeightsError as error:
        pytest.skip(str(error))
    view = dataset.limit(1)
    options = {"every": 12, "grid": 6, "max_objects": 6}
    found = api.propose(view, propagator="mobilesam", progress=False, **options)
    assert found.ok and found.tracks >= 2, found
    first = dataset.first().frames[1]["prompts"].detections
    assert len({label.index for label in first}) == len(first)
    assert {label.label for label in first} == {"object"}
    # The disc (center 19, 32 of 96 x 72) and the brick are among what was found.
    centers = [
        ((b[0] + b[2] / 2) * 96, (b[1] + b[3] / 2) * 72)
        for b in (label.bounding_box for label in first)
    ]
    for x, y in ((19, 32), (68, 48)):
        assert any(abs(cx - x) < 4 and abs(cy - y) < 4 for cx, cy in centers)
    assert api.propose(view, progress=False, **options).skipped == 1
    summary = api.propagate(view, propagator="flow", progress=False)
    assert summary.ok and summary.tracks == found.tracks


def test_a_propagator_without_a_model_finds_nothing(dataset):
    with pytest.raises(BackendError, match="choose mobilesam or sam2"):
        api.propose(dataset, propagator="flow", progress=False)
