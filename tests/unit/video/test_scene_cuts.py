from __future__ import annotations

import cv2
import numpy as np
import pytest

from fiftyone_regioncap.video.scene_cuts import SceneCutDetector


def shot(seed: int, length: int, speed: int = 2) -> list[np.ndarray]:
    """A camera that pans over a random scene of a few colors."""
    random = np.random.default_rng(seed)
    palette = random.integers(0, 256, (5, 3))
    scene = palette[random.integers(0, 5, (6, 40))].astype(np.uint8)
    scene = cv2.resize(scene, (1600, 120), interpolation=cv2.INTER_LINEAR)
    return [scene[:, speed * i : speed * i + 200].copy() for i in range(length)]


def cuts(frames: list[np.ndarray]) -> list[int]:
    detector = SceneCutDetector()
    return [index for index, frame in enumerate(frames) if detector.is_cut(frame)]


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_is_where_two_shots_meet(seed):
    assert cuts(shot(2 * seed, 15) + shot(2 * seed + 1, 15)) == [15]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("speed", [0, 3, 12])
def test_panning_is_no_cut(seed, speed):
    assert cuts(shot(seed, 30, speed)) == []


def test_a_flash_is_no_cut():
    frames = shot(3, 20)
    frames[10] = np.clip(frames[10].astype(int) + 90, 0, 255).astype(np.uint8)
    assert cuts(frames) == []


def test_noise_is_no_cut():
    random = np.random.default_rng(0)
    frames = [
        np.clip(frame + random.normal(0, 20, frame.shape), 0, 255).astype(np.uint8)
        for frame in shot(5, 20, 0)
    ]
    assert cuts(frames) == []


def test_real_clips_have_cuts_only_where_they_are_joined(clips):
    frames: list[np.ndarray] = []
    joints = []
    for folder in sorted(clips.iterdir()):
        images = sorted(folder.rglob("*.jpg"))[:40]
        if len(images) < 10:
            continue
        joints.append(len(frames))
        for path in images:
            image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            frames.append(cv2.resize(image, (320, 180)))
    if len(joints) < 2:
        pytest.skip("no clips as images")
    assert cuts(frames) == joints[1:]


def test_going_on_from_a_state_changes_nothing():
    frames = shot(1, 12) + shot(2, 12)
    first = SceneCutDetector()
    found = [first.is_cut(frame) for frame in frames[:8]]
    second = SceneCutDetector()
    second.restore(frames[7], first.state.tolist())
    found += [second.is_cut(frame) for frame in frames[8:]]
    assert [i for i, cut in enumerate(found) if cut] == cuts(frames)


def test_a_sensitivity_out_of_range():
    with pytest.raises(ValueError, match="sensitivity"):
        SceneCutDetector(0)
