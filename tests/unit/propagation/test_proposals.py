from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.propagation.proposals import (
    ProposalOptions,
    grid_points,
    proposals,
    propose,
    stability,
)

GROUND, RED, BLUE = (90, 90, 90), (200, 30, 30), (30, 30, 200)


class Clip:
    height, width = 60, 100

    def __init__(self, *scenes):
        self.scenes = scenes

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        frame = np.full((60, 100, 3), GROUND, dtype=np.uint8)
        for color, x, y in self.scenes[index]:
            frame[y : y + 20, x : x + 20] = color
        return frame


class ByColor:
    """Takes everything of the color under a point; sure of all but the ground."""

    def encode(self, frame):
        return frame

    def decode(self, frame, points):
        masks, ious = [], []
        for x, y in points.astype(int):
            mask = (frame == frame[y, x]).all(axis=2)
            masks.append(np.where(mask, 9.0, -9.0).astype(np.float32))
            ious.append(0.5 if tuple(frame[y, x]) == GROUND else 0.95)
        return np.stack(masks), np.array(ious, dtype=np.float32)


CASES = {
    "nothing": ([[]], []),
    "one object, once": ([[(RED, 10, 10)]] * 3, [0]),
    "two objects": ([[(RED, 10, 10), (BLUE, 60, 30)]], [0, 0]),
    "one comes in later": (
        [[(RED, 10, 10)], [(RED, 10, 10), (BLUE, 60, 30)]],
        [0, 1],
    ),
    "one moves": ([[(RED, 10, 10)], [(RED, 34, 12)], [(RED, 60, 20)]], [0]),
    "one goes and comes back": ([[(RED, 10, 10)], [], [(RED, 12, 10)]], [0]),
    "another takes its place far away": (
        [[(RED, 0, 0)], [(RED, 80, 40)]],
        [0, 1],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_object_is_proposed_once(case):
    scenes, frames = CASES[case]
    options = ProposalOptions(every=1, grid=10)
    found = propose(Clip(*scenes), ByColor(), options)
    assert [prompt.frame for prompt in found] == frames
    assert [prompt.object_id for prompt in found] == list(range(1, len(frames) + 1))
    for prompt in found:
        assert prompt.mask.sum() == 400


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"min_iou": 0.99}, 0),
        ({"min_area": 0.5}, 0),
        ({"max_area": 0.01}, 0),
        ({"min_iou": 0.1, "max_area": 1.0}, 3),  # the ground too
        ({"max_objects": 1}, 1),
    ],
)
def test_options(change, count):
    clip = Clip([(RED, 10, 10), (BLUE, 60, 30)])
    assert len(propose(clip, ByColor(), ProposalOptions(grid=10, **change))) == count


def test_grid_points_are_inside():
    points = grid_points(4, 60, 100)
    assert points.shape == (16, 2)
    assert points.min(axis=0).tolist() == [12.5, 7.5]
    assert points.max(axis=0).tolist() == [87.5, 52.5]


def test_stability():
    logits = np.array([[-2.0, -0.5, 0.5, 3.0]], dtype=np.float32)
    assert stability(logits) == pytest.approx(1 / 3)
    assert stability(np.full((2, 2), -9, dtype=np.float32)) == 0


def test_bad_options():
    with pytest.raises(ValueError, match="at least 1"):
        ProposalOptions(grid=0)


def test_more_points_than_go_through_the_segmenter_at_once():
    clip = Clip([(RED, 10, 10)])
    found = proposals(clip[0], ByColor(), ProposalOptions(grid=20))
    assert len(found) == 1
