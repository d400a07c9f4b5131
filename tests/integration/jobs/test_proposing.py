"""Objects of videos that nobody marked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import BackendError, WeightsError
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.propagation.base import PropagatorInfo
from fiftyone_regioncap.system import assets
from tests.support.videos import write_video

COLORS = ((200, 20, 20), (20, 160, 20), (20, 20, 200))
FRAMES = 10  # of each color


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


class FloodFill:
    """Finds what has one color, without weights."""

    info = PropagatorInfo("fill", "flood fill", "1", "MIT")

    def encode(self, frame: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(frame)

    def decode(
        self, encoded: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = encoded.shape[:2]
        logits = np.full((len(points), height, width), -10, np.float32)
        for found, (x, y) in zip(logits, points, strict=True):
            mask = np.zeros((height + 2, width + 2), np.uint8)
            flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE
            at = int(x), int(y)
            cv2.floodFill(encoded, mask, at, 0, (40,) * 3, (40,) * 3, flags)
            found[mask[1:-1, 1:-1] > 0] = 10
        return logits, np.ones(len(points), np.float32)


@pytest.fixture
def squares(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    """A video of a red square, then a green one, then a blue one."""
    pictures = []
    for number, color in enumerate(COLORS):
        picture = np.full((48, 96, 3), 128, np.uint8)
        picture[12:36, 8 + 28 * number : 32 + 28 * number] = color
        pictures += [picture] * FRAMES
    made = fo.Dataset()
    path = write_video(tmp_path / "squares.mp4", pictures)
    made.add_sample(fo.Sample(filepath=str(path)))
    yield made
    made.delete()


def propose(samples: Any, **options: Any) -> Any:
    chosen = {"every": 5, "grid": 12, "min_area": 0.02, **options}
    found = api.propose(samples, propagator=FloodFill(), progress=False, **chosen)
    assert found.ok, found.failures
    return found


def clips(dataset: fo.Dataset, *supports: tuple[int, int]) -> fo.DatasetView:
    """Clips of the only video, by first and last frame as FiftyOne counts."""
    sample = dataset.first()
    events = [fo.TemporalDetection(label="a", support=list(s)) for s in supports]
    sample["clips"] = fo.TemporalDetections(detections=events)
    sample.save()
    return dataset.to_clips("clips")


def prompts(dataset: fo.Dataset) -> dict[int, list[int]]:
    """The numbers of what was found, by frame as FiftyOne counts."""
    dataset.reload()
    return {
        number: [label.index for label in frame["prompts"].detections]
        for number, frame in dataset.first().frames.items()
        if dataset.has_frame_field("prompts") and frame["prompts"] is not None
    }


def put(dataset: fo.Dataset, **values: Any) -> None:
    """Writes what jobs keep, which FiftyOne may not."""
    dataset._sample_collection.update_many({}, {"$set": values})


@pytest.mark.parametrize(
    ("supports", "found"),
    [
        ([(1, 10), (21, 30)], {1: [1], 21: [2]}),
        ([(21, 30), (1, 10)], {1: [1], 21: [2]}),
        ([(3, 10)], {3: [1]}),
        ([(1, 10), (6, 15)], {1: [1], 11: [2]}),
        ([(1, 10), (1, 10)], {1: [1]}),
        ([(1, 10), (2, 5)], {1: [1]}),
    ],
    ids=["two", "in any order", "one", "overlapping", "the same", "one in another"],
)
def test_every_clip_is_searched(
    squares: fo.Dataset, supports: list[tuple[int, int]], found: dict[int, list[int]]
) -> None:
    view = clips(squares, *supports)
    assert propose(view).tracks == len(found)
    assert prompts(squares) == found
    assert propose(view).skipped == 1
    assert prompts(squares) == found


def test_clips_keep_what_was_found_in_others(squares: fo.Dataset) -> None:
    propose(clips(squares, (1, 10)))
    propose(clips(squares, (11, 20)))
    assert prompts(squares) == {1: [1], 11: [2]}
    # Only what is new is searched.
    assert propose(clips(squares, (1, 10), (21, 30))).tracks == 1
    assert prompts(squares) == {1: [1], 11: [2], 21: [3]}
    again = propose(clips(squares, (1, 10)), max_objects=2)
    assert again.tracks == 1 and "1 proposals were made" in again.notes[0]
    assert prompts(squares) == {1: [1], 11: [2], 21: [3]}
    # All of the video was never searched as a whole.
    assert propose(squares).tracks == 3
    assert prompts(squares) == {1: [1], 11: [2], 21: [3]}
    assert propose(squares).skipped == 1


def test_what_other_options_found_is_searched_again(squares: fo.Dataset) -> None:
    assert propose(squares, max_objects=1).tracks == 1
    again = propose(squares)
    assert (again.tracks, again.skipped) == (3, 0)
    assert "1 proposals were made from other prompts, options" in again.notes[0]
    assert prompts(squares) == {1: [1], 11: [2], 21: [3]}
    assert propose(squares).skipped == 1
    forced = propose(squares, overwrite=True)
    assert forced.tracks == 3 and not forced.notes
    assert propose(squares).skipped == 1


def test_what_nothing_says_the_options_of_stays(squares: fo.Dataset) -> None:
    propose(squares, max_objects=1)
    put(squares, prompts_origin=None)  # as older versions left it
    assert propose(squares).skipped == 1
    assert prompts(squares) == {1: [1]}


def test_a_search_that_was_cut_off_is_done_again(squares: fo.Dataset) -> None:
    propose(squares)
    put(squares, prompts_origin={"0": None}, prompts_status="partial")
    assert propose(squares).tracks == 3
    assert squares.values("prompts_status") == ["complete"]


def test_edited_prompts_stay_where_options_change(squares: fo.Dataset) -> None:
    propose(squares)
    sample = squares.first()
    sample.frames[11]["prompts"].detections[0].label = "green"
    sample.save()
    # Those of a clip without it are replaced.
    assert propose(clips(squares, (21, 30)), max_objects=2).tracks == 1
    fill = FloodFill()
    for hidden in (False, True):
        view = squares
        if hidden:
            view = squares.filter_labels("frames.prompts", fo.ViewField("index") == 1)
        found = api.propose(view, propagator=fill, max_objects=2, progress=False)
        (failure,) = found.failures
        assert "frame 11 has labels in frames.prompts that a person" in failure.error
        assert "write to frames.prompts_2" in failure.error
    assert prompts(squares) == {1: [1], 11: [2], 21: [3]}
    assert squares.first().frames[11]["prompts"].detections[0].label == "green"


def test_a_propagator_without_a_model_finds_nothing(dataset):
    with pytest.raises(BackendError, match="choose mobilesam or sam2"):
        api.propose(dataset, propagator="flow", progress=False)
