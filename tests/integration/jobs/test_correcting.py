"""Going on with a track from a frame that a person corrected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from tests.support.failing import FailingFlow

PROMPTS = [
    Prompt(7, 3, box=(10, 20, 34, 44), label="disc"),
    Prompt(2, 0, box=(60, 40, 76, 56), label="brick"),
]
FRAME = 12  # as FiftyOne counts


@pytest.fixture
def sample(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Sample]:
    """A video with tracks and captions of two objects."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    made, _, _ = datasets.add_videos("correcting", videos[:1], PROMPTS)
    api.propagate_and_caption(
        made, propagator="flow", captioner="measured", progress=False
    )
    yield made.first()
    made.delete()


def tracks(sample: fo.Sample) -> dict[tuple[int, int], Any]:
    """Box and mask by frame and object."""
    sample.reload()
    return {
        (number, label.index): (label.id, tuple(label.bounding_box), label.mask.sum())
        for number, frame in sample.frames.items()
        for label in frame.tracks.detections
    }


def correct(sample: fo.Sample, number: int = FRAME) -> np.ndarray:
    """Moves the disc's mask down, as a person would with the App's brush."""
    label = next(d for d in sample.frames[number].tracks.detections if d.index == 7)
    x, y, w, h = label.bounding_box
    label.bounding_box = [x, y + 0.2, w, h]
    sample.save()
    return label.mask


def run(sample: fo.Sample, **options: Any) -> Any:
    view = sample._dataset.select(sample.id)
    return api.propagate_from(view, propagator="flow", progress=False, **options)


@pytest.mark.parametrize(
    ("direction", "anew"),
    [
        ("forward", range(FRAME + 1, 25)),
        ("backward", range(1, FRAME)),
        ("both", [*range(1, FRAME), *range(FRAME + 1, 25)]),
    ],
)
def test_only_the_object_and_the_frames_in_that_direction_are_made_anew(
    sample: fo.Sample, direction: str, anew: Any
) -> None:
    correct(sample)
    before = tracks(sample)
    summary = run(sample, direction=direction)
    assert summary.ok and summary.tracks == 1
    after = tracks(sample)
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed and changed <= {(number, 7) for number in anew}
    assert after[FRAME, 7] == before[FRAME, 7]
    nearest = FRAME + 1 if FRAME + 1 in anew else FRAME - 1
    # It goes on from where the person put it.
    assert abs(after[nearest, 7][1][1] - after[FRAME, 7][1][1]) < 0.1


def test_captions_of_the_object_are_outdated_and_redone_on_demand(sample) -> None:
    correct(sample)
    run(sample)
    sample.reload()
    by_index = {label.index: label for label in sample.captions.detections}
    assert by_index[7].tags == ["outdated"] and not by_index[2].tags
    view = sample._dataset.select(sample.id)
    assert api.caption(view, captioner="measured", progress=False).captions == 1
    sample.reload()
    assert not any(label.tags for label in sample.captions.detections)
    # The correction stays when the prompts are propagated again.
    there = tracks(sample)
    again = api.propagate(view, propagator="flow", progress=False)
    assert again.skipped == 1 and tracks(sample) == there


def test_a_mark_that_was_drawn_later_counts_as_a_correction(sample) -> None:
    sample.frames[FRAME]["prompts"] = fo.Detections(
        detections=[fo.Detection(label="disc", index=7, bounding_box=[0, 0, 0.2, 0.2])]
    )
    sample.save()
    before = tracks(sample)
    run(sample, object_id=7, frame=FRAME - 1, prompts="frames.prompts")
    after = tracks(sample)
    assert after[FRAME, 7] != before[FRAME, 7]
    assert after[FRAME, 7][1][0] < 0.25
    assert all(after[key] == before[key] for key in before if key[0] < FRAME)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "no label of frames.tracks was edited"),
        ({"object_id": 9}, "holds no object 9"),
        ({"object_id": 7, "frame": 99}, "object 7 has no label on frame 100"),
    ],
    ids=["nothing edited", "no such object", "past the end"],
)
def test_what_can_not_be_done_is_said(sample, options, says) -> None:
    before = tracks(sample)
    summary = run(sample, **options)
    assert says in summary.failures[0].error
    assert tracks(sample) == before


def test_marks_without_a_number_keep_the_object_they_were_made_to(sample) -> None:
    def draw(number: int, left: float) -> None:
        box = fo.Detection(label="x", bounding_box=[left, 0.3, 0.2, 0.3])
        sample.frames[number]["drawn"] = fo.Detections(detections=[box])
        sample.save()

    view = sample._dataset.select(sample.id)
    options = {"prompts": "frames.drawn", "propagator": "flow", "progress": False}
    for number, left in ((5, 0.15), (2, 0.6)):  # two objects
        draw(number, left)
        api.propagate(view, output="frames.drawn_tracks", **options)
    sample.reload()
    before = sample.frames[8].drawn_tracks.detections[0]
    assert before.index == 1 and before.bounding_box[0] < 0.4
    done = api.propagate_from(
        view, tracks="frames.drawn_tracks", object_id=1, frame=0, **options
    )
    assert done.ok
    sample.reload()
    after = sample.frames[8].drawn_tracks.detections[0]
    assert after.index == 1 and after.bounding_box[0] < 0.4


def test_what_failed_in_the_middle_is_made_by_the_next_job(sample) -> None:
    correct(sample)
    before = set(tracks(sample))
    view = sample._dataset.select(sample.id)
    assert api.propagate_from(view, propagator=FailingFlow(), progress=False).failures
    assert set(tracks(sample)) < before
    assert api.propagate(view, propagator="flow", progress=False).frames
    assert set(tracks(sample)) == before and sample.tracks_status == "complete"
