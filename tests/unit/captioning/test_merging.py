"""Which frame of a track its sentence comes from."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.merging import best_frame, inside_share, sharpness
from fiftyone_regioncap.core.types import RegionClip, Track


def frame(seed: int = 0) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (60, 80, 3), dtype=np.uint8)


def mask(x1: int, y1: int, x2: int, y2: int) -> NDArray[np.bool_]:
    full = np.zeros((60, 80), dtype=bool)
    full[y1:y2, x1:x2] = True
    return full


SMALL, LARGE, CUT = mask(20, 20, 30, 30), mask(20, 20, 40, 40), mask(0, 20, 20, 40)
EMPTY = np.zeros((60, 80), dtype=bool)
BLURRED = cv2.GaussianBlur(frame(), (9, 9), 3)


@pytest.mark.parametrize(
    ("frames", "masks", "best"),
    [
        pytest.param([frame(), frame()], [SMALL, LARGE], 1, id="the largest"),
        pytest.param([BLURRED, frame()], [LARGE, LARGE], 1, id="the sharpest"),
        pytest.param([frame(), frame()], [CUT, LARGE], 1, id="the whole one"),
        pytest.param([frame(), frame()], [EMPTY, SMALL], 1, id="the visible one"),
        pytest.param([frame(), frame()], [LARGE, LARGE], 0, id="the first of equals"),
        pytest.param([frame()], [EMPTY], None, id="none"),
        pytest.param([frame(), frame()], [LARGE[:9], SMALL], 1, id="one that fits"),
        pytest.param(
            [np.zeros_like(frame())] * 2, [SMALL, LARGE], 1, id="without any texture"
        ),
    ],
)
def test_best_look(
    frames: list[NDArray[np.uint8]], masks: list[NDArray[np.bool_]], best: int | None
) -> None:
    clip = RegionClip(
        frames=frames, masks=masks, frame_indices=tuple(range(len(masks)))
    )
    assert best_frame(clip) == best


def test_a_frame_that_the_propagator_doubts_is_not_the_best() -> None:
    track = Track(
        object_id=1,
        frames=np.array([4, 9]),
        boxes=np.tile([20.0, 20.0, 40.0, 40.0], (2, 1)),
        scores=np.array([0.3, 0.9]),
    )
    clip = RegionClip(
        frames=[frame(), frame()],
        masks=[LARGE, LARGE],
        frame_indices=(4, 9),
        track=track,
    )
    assert best_frame(clip) == 1


def test_blur_lowers_sharpness() -> None:
    assert sharpness(BLURRED, LARGE) < sharpness(frame(), LARGE) / 10


@pytest.mark.parametrize(
    ("seen", "share"),
    [
        pytest.param(LARGE, 1.0, id="free"),
        pytest.param(CUT, 0.75, id="one side of four"),
        pytest.param(mask(0, 0, 80, 60), 0.0, id="the whole frame"),
    ],
)
def test_inside_share(seen: NDArray[np.bool_], share: float) -> None:
    assert inside_share(seen) == pytest.approx(share)
