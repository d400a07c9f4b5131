from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.captioning.checking import clip_problem
from fiftyone_regioncap.core.types import RegionClip

FRAME = np.zeros((6, 9, 3), dtype=np.uint8)
EMPTY = np.zeros((6, 9), dtype=bool)
MASK = ~EMPTY


@pytest.mark.parametrize(
    ("frames", "masks", "says"),
    [
        pytest.param([FRAME], [MASK], None, id="good"),
        pytest.param([FRAME, FRAME], [EMPTY, MASK], None, id="out of sight at first"),
        pytest.param([], [], "one or more frames", id="nothing"),
        pytest.param([FRAME, FRAME], [MASK], "2 frames and 1 masks", id="mask missing"),
        pytest.param([FRAME], [EMPTY], "empty on every frame", id="never visible"),
        pytest.param([FRAME], [MASK.T], "frames' size", id="turned mask"),
        pytest.param([FRAME[..., 0]], [MASK], "give uint8", id="gray frame"),
        pytest.param([FRAME / 255], [MASK], "give uint8", id="frame of floats"),
        pytest.param([FRAME[..., :2]], [MASK], "give uint8", id="two channels"),
    ],
)
def test_clip_problem(
    frames: list[np.ndarray], masks: list[np.ndarray], says: str | None
) -> None:
    problem = clip_problem(RegionClip(frames, masks))
    assert problem == says or (says is not None and says in str(problem))
