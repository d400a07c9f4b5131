from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.core.types import FrameMasks, ObjectMask, Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest, PropagatorInfo
from fiftyone_regioncap.propagation.policy import Policy, PolicyPropagator

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 160, 30)


class Clip:
    """A colored square on a ground that changes with the shot."""

    height, width = 60, 80

    def __init__(self, squares, grounds):
        self.squares, self.grounds = squares, grounds

    def __len__(self):
        return len(self.squares)

    def __getitem__(self, index):
        random = np.random.default_rng(self.grounds[index])
        coarse = random.integers(0, 256, (6, 8, 3))
        frame = np.kron(coarse, np.ones((10, 10, 1))).astype(np.uint8)
        frame[20:40, 30:50] = self.squares[index]
        return frame


class Scripted:
    """Follows every prompt with a fixed mask and scores read from a list."""

    info = PropagatorInfo("scripted", "", "", "MIT")

    def __init__(self, scores):
        self.scores = scores

    def propagate(self, request):
        checkpoint = request.checkpoint
        assert all(not name.startswith("policy/") for name in checkpoint or {})
        return Run(self.scores, request, int(checkpoint["done"]) if checkpoint else 0)


class Run:
    def __init__(self, scores, request, done):
        first = {}
        prompts, direction = request.prompts, request.direction
        start, stop = request.start, request.end
        for prompt in prompts:
            first.setdefault(prompt.object_id, prompt.frame)
        forward = [(t, [o for o in first if first[o] <= t]) for t in range(start, stop)]
        back = [
            (t, [o for o in first if t < first[o]]) for t in range(stop - 1, -1, -1)
        ]
        back = [pair for pair in back if pair[0] >= start]
        plan = {"forward": forward, "both": forward + back}.get(direction)
        if plan is None:
            plan = [(t, list(first)) for t in range(max(first.values()), start - 1, -1)]
        self.plan = [pair for pair in plan if pair[1]]
        self.scores, self.done = scores, done
        self.prompted = {(p.frame, p.object_id) for p in prompts}

    def __iter__(self):
        return self

    def __next__(self):
        if self.done == len(self.plan):
            raise StopIteration
        frame, objects = self.plan[self.done]
        self.done += 1
        mask = np.zeros((60, 80), dtype=bool)
        mask[20:40, 30:50] = True
        return FrameMasks(
            frame,
            {o: ObjectMask(mask, self.scores[frame]) for o in objects},
            frozenset(o for o in objects if (frame, o) in self.prompted),
        )

    def checkpoint(self):
        return {"done": np.array(self.done)}


def prompt(frame, object_id=1):
    return Prompt(object_id, frame, box=(30, 20, 50, 40))


STEADY = [0.9] * 12
FADING = [0.9, 0.9, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9]
ONE_SHOT, TWO_SHOTS = [1] * 12, [1] * 6 + [2] * 6
SAME = [RED] * 12
OTHER_THEN_SAME = [RED] * 6 + [BLUE] * 3 + [RED] * 3

CASES = {
    "nothing asked for": (Policy(), [0], "forward", FADING, list(range(12)), []),
    "three frames": (Policy(max_frames=3), [4], "forward", STEADY, [4, 5, 6], []),
    "three frames back": (Policy(max_frames=3), [4], "backward", STEADY, [4, 3, 2], []),
    "three frames both ways": (
        Policy(max_frames=3),
        [4],
        "both",
        STEADY,
        [4, 5, 6, 3, 2],
        [],
    ),
    "lost after two weak frames": (
        Policy(min_score=0.5, patience=2),
        [0],
        "forward",
        FADING,
        [0, 1, 2, 3, 4],
        [],
    ),
    "lost and prompted again": (
        Policy(min_score=0.5, patience=2),
        [0, 9],
        "forward",
        FADING,
        [0, 1, 2, 3, 4, 9, 10, 11],
        [],
    ),
    "stops at a cut": (
        Policy(scene_cuts="stop"),
        [0],
        "forward",
        STEADY,
        [0, 1, 2, 3, 4, 5],
        [],
    ),
    "prompted on the cut": (
        Policy(scene_cuts="stop"),
        [0, 6],
        "forward",
        STEADY,
        list(range(12)),
        [],
    ),
    "stops at a cut going back": (
        Policy(scene_cuts="stop"),
        [8],
        "backward",
        STEADY,
        [8, 7, 6],
        [],
    ),
    "hidden until it looks like itself": (
        Policy(scene_cuts="redetect"),
        [0],
        "forward",
        STEADY,
        list(range(12)),
        [6, 7, 8],
    ),
}


def run(case, checkpoint=None):
    policy, prompted, direction, scores, _, _ = CASES[case]
    cuts = policy.scene_cuts
    clip = Clip(
        OTHER_THEN_SAME if cuts == "redetect" else SAME,
        ONE_SHOT if cuts == "ignore" else TWO_SHOTS,
    )
    prompts = [prompt(t) for t in prompted]
    request = PropagationRequest(clip, prompts, direction, checkpoint=checkpoint)
    return PolicyPropagator(Scripted(scores), policy).propagate(request)


@pytest.mark.parametrize("case", CASES)
def test_policy(case):
    _, _, _, _, carried, hidden = CASES[case]
    found = list(run(case))
    assert [one.frame for one in found if 1 in one.objects] == carried
    unseen = [o.frame for o in found if 1 in o.objects and o.objects[1].mask is None]
    assert unseen == hidden


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut", [1, 3, 7])
def test_going_on_from_a_checkpoint_changes_nothing(case, cut):
    whole = [(one.frame, set(one.objects)) for one in run(case)]
    first = run(case)
    start = [(o.frame, set(o.objects)) for _, o in zip(range(cut), first, strict=False)]
    rest = [(one.frame, set(one.objects)) for one in run(case, first.checkpoint())]
    assert start + rest == whole


def test_a_lost_video_is_not_run_to_its_end():
    found = list(run("lost after two weak frames"))
    assert found[-1].frame == 5  # the frame that settled it, without the object


@pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
@pytest.mark.parametrize(
    ("direction", "frames"),
    [
        ("forward", {1: [0, 1, 2], 2: [7, 8, 9]}),
        ("backward", {1: [5, 4, 3], 2: [7, 6, 5]}),
        ("both", {1: [0, 1, 2], 2: [7, 8, 9, 6, 5]}),
    ],
)
def test_each_object_has_its_own_frames(direction, frames, together):
    prompts = [prompt(0), prompt(5), prompt(7, 2)]
    found = {}
    for chosen in [prompts] if together else [prompts[:2], prompts[2:]]:
        request = PropagationRequest(Clip(SAME, ONE_SHOT), chosen, direction)
        limited = PolicyPropagator(Scripted(STEADY), Policy(max_frames=3))
        for one in limited.propagate(request):
            for object_id in one.objects:
                found.setdefault(object_id, []).append(one.frame)
    assert found == frames


@pytest.mark.parametrize(
    "wrong", [{"max_frames": 0}, {"min_score": 1.5}, {"patience": 0}]
)
def test_bad_policies(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Policy(**wrong)
