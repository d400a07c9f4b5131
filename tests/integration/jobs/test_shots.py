"""Shots of videos, and clips of them that workers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import FieldError
from tests.support.videos import write_video

LENGTHS = (9, 14, 7)
SUPPORTS = [[1, 9], [10, 23], [24, 30]]


@pytest.fixture
def dataset(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    """A video of three shots, each of a wall and of a square that moves."""
    rng = np.random.default_rng(0)
    pictures = []
    for length in LENGTHS:
        wall = np.kron(rng.integers(0, 256, (6, 8, 3), np.uint8), np.ones((12, 12, 1)))
        for number in range(length):
            picture = wall.astype(np.uint8)
            picture[20:40, 10 + number : 30 + number] = (220, 30, 30)
            pictures.append(picture)
    made = fo.Dataset()
    path = write_video(tmp_path / "video.mp4", pictures)
    made.add_sample(fo.Sample(filepath=str(path)))
    yield made
    made.delete()


def test_shots_are_found_once_and_make_clips(dataset: fo.Dataset) -> None:
    made = api.find_shots(dataset, progress=False)
    assert made.ok and "**3** shots in 1 of 1 videos" in made.to_markdown()
    dataset.reload()
    shots = dataset.first()["shots"].detections
    assert [shot.support for shot in shots] == SUPPORTS
    assert [shot.label for shot in shots] == ["shot 1", "shot 2", "shot 3"]
    assert dataset.to_clips("shots").values("support") == SUPPORTS
    assert api.find_shots(dataset, progress=False).skipped == 1
    again = api.find_shots(dataset, overwrite=True, progress=False)
    assert (again.shots, again.skipped) == (3, 0)
    dataset.reload()
    assert [shot.id for shot in dataset.first()["shots"].detections] == [
        shot.id for shot in shots
    ]


def test_events_of_others_are_not_replaced(dataset: fo.Dataset) -> None:
    sample = dataset.first()
    events = [fo.TemporalDetection(label="goal", support=[2, 4])]
    sample["shots"] = fo.TemporalDetections(detections=events)
    sample.save()
    with pytest.raises(FieldError, match=r"did not write \(goal\); write to shots_2"):
        api.find_shots(dataset, progress=False)


def test_shots_of_another_sensitivity_are_found_again(dataset: fo.Dataset) -> None:
    api.find_shots(dataset, sensitivity=0.01, progress=False)
    again = api.find_shots(dataset, progress=False)
    assert (again.shots, again.skipped) == (3, 0)
    assert "shots were made from other prompts, options" in again.notes[0]
    assert api.find_shots(dataset, sensitivity=0.5, progress=False).skipped == 1
    as_before = {"$set": {"shots_origin": None}}  # in older versions
    dataset._sample_collection.update_many({}, as_before)
    assert api.find_shots(dataset, sensitivity=0.01, progress=False).skipped == 1


@pytest.mark.parametrize(
    "edit",
    [{"label": "goal"}, {"support": [10, 20]}, {"tags": ["mine"]}],
    ids=["a name", "a range", "a tag"],
)
def test_edited_shots_stay_where_options_change(
    dataset: fo.Dataset, edit: dict[str, Any]
) -> None:
    api.find_shots(dataset, progress=False)
    sample = dataset.first()
    ((name, value),) = edit.items()
    sample["shots"].detections[1][name] = value
    sample.save()
    failed = api.find_shots(dataset, sensitivity=0.4, progress=False)
    assert "shots that a person edited" in failed.failures[0].error
    assert "write to shots_2" in failed.failures[0].error
    dataset.reload()
    assert dataset.first()["shots"].detections[1][name] == value
    assert api.find_shots(dataset, progress=False).skipped == 1
    assert dataset.values("shots_status") == ["complete"]
    again = api.find_shots(dataset, overwrite=True, progress=False)
    assert again.ok and again.shots == 3
    dataset.reload()
    assert [shot.support for shot in dataset.first()["shots"].detections] == SUPPORTS
