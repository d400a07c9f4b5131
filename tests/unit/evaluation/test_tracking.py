"""HOTA and IDF1 by hand; they equal TrackEval's on random tracks."""

from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.evaluation.tracking import TrackingScores


def scores(*videos: list[tuple[list[int], list[int], list[list[float]]]]):
    tracking = TrackingScores()
    for video in videos:
        tracking.add(
            (true, said, np.array(iou, float).reshape(len(true), len(said)))
            for true, said, iou in video
        )
    return tracking.result()


def test_perfect_tracks_under_other_ids() -> None:
    frame = ([1, 2], [20, 10], [[0, 1], [1, 0]])
    assert scores([frame] * 3) == pytest.approx(
        {"hota": 1, "deta": 1, "assa": 1, "idf1": 1}
    )


def test_an_identity_that_changes_half_way() -> None:
    video = [([1], [5], [[1.0]])] * 2 + [([1], [6], [[1.0]])] * 2
    found = scores(video)
    # All is found; each of the two tracks shares 2 of 4 frames with the true one.
    assert found["deta"] == pytest.approx(1) and found["assa"] == pytest.approx(0.5)
    assert found["hota"] == pytest.approx(0.5**0.5)
    assert found["idf1"] == pytest.approx(2 / (2 + 0.5 * 2 + 0.5 * 2))


def test_overlap_counts_up_to_its_threshold() -> None:
    found = scores([([1], [1], [[0.5]])])
    assert found["deta"] == pytest.approx(10 / 19)  # 0.05, 0.1, ... 0.5
    assert found["idf1"] == 1


@pytest.mark.parametrize(
    "video", [[], [([1], [], [])], [([], [1], [])]], ids=["empty", "missed", "made up"]
)
def test_nothing_right(video: list) -> None:
    assert scores(video) == pytest.approx({"hota": 0, "deta": 0, "assa": 0, "idf1": 0})
