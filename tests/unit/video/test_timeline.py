from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fiftyone_regioncap.video.reader import VideoReader
from fiftyone_regioncap.video.timeline import Timeline
from tests.support.videos import numbered, write_video

CONSTANT = Timeline.constant(10, 25.0)
UNEVEN = Timeline(np.array([0.0, 0.1, 0.2, 0.8, 0.9]), 5.0)
LATE = Timeline(np.arange(10) / 25.0, 25.0, start=1.0)


@pytest.mark.parametrize(
    ("timeline", "frame", "seconds"),
    [
        pytest.param(CONSTANT, 5, 0.2, id="constant rate"),
        pytest.param(CONSTANT, 10, 0.4, id="the end"),
        pytest.param(UNEVEN, 3, 0.8, id="variable rate"),
        pytest.param(UNEVEN, 5, 1.1, id="the end at the mean rate"),
        pytest.param(LATE, 0, 1.0, id="late start"),
    ],
)
def test_when_a_frame_is_shown(timeline: Timeline, frame: int, seconds: float) -> None:
    assert timeline.at(frame) == pytest.approx(seconds)


def test_the_rate_of_a_stretch_is_its_own() -> None:
    assert UNEVEN.rate_between(0, 2) == pytest.approx(10)
    assert UNEVEN.rate_between(2, 3) == pytest.approx(1 / 0.6)
    assert UNEVEN.rate_between(1, 1) == 5.0
    assert CONSTANT.rate_between(3, 8) == 25.0  # to the bit


@pytest.mark.parametrize(
    ("timeline", "misplaced"),
    [
        pytest.param(CONSTANT, 0, id="constant rate"),
        pytest.param(UNEVEN, 3, id="variable rate"),
        pytest.param(LATE, 9, id="late start"),
        pytest.param(
            Timeline(np.round(np.arange(60) * 1001 / 30000, 3), 30000 / 1001),
            0,
            id="times rounded to milliseconds",
        ),
    ],
)
def test_frames_that_the_app_takes_for_others(
    timeline: Timeline, misplaced: int
) -> None:
    assert timeline.misplaced() == misplaced


def test_a_video_that_starts_after_its_sound(tmp_path: Path) -> None:
    images = [numbered(number) for number in range(5)]
    times = [400 + 40 * number for number in range(5)]
    path = write_video(tmp_path / "late.mp4", images, times=times, audio=True)
    with VideoReader(path) as reader:
        assert reader.timeline.start == pytest.approx(0.4, abs=0.05)
        assert reader.timeline.times == pytest.approx(np.arange(5) * 0.04)
