"""Requests are validated where they are made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.prompts import check_prompts
from fiftyone_regioncap.propagation.stream import plan_passes


class Video:
    """Ten frames that nobody looks at."""

    height, width = 90, 140

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> np.ndarray:
        raise AssertionError("validation reads no frame")


def box(object_id: int, frame: int = 0, label: str | None = None) -> Prompt:
    return Prompt(object_id, frame, box=(10, 10, 60, 60), label=label)


BAD_PROMPTS = {
    "past the end": (box(1, 10), "object 1 on frame 11: .* frames 1 to 10"),
    "before the start": (box(1, -1), "frames 1 to 10"),
    "outside the frame": (
        Prompt(1, 0, box=(150, 10, 160, 20)),
        "outside the 140x90 frame",
    ),
    "no area": (Prompt(1, 0, box=(5, 5, 5, 9)), "no area"),
    "NaN": (Prompt(1, 0, box=(5, 5, float("nan"), 9)), "no area"),
    "empty mask": (Prompt(1, 0, mask=np.zeros((90, 140), bool)), "mask is empty"),
    "mask of another size": (
        Prompt(1, 0, mask=np.ones((9, 14), bool)),
        "give a mask of the frame's size",
    ),
    "nothing given": (Prompt(1, 0), "give a box, points or a mask"),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_bad_prompts(case):
    prompt, message = BAD_PROMPTS[case]
    with pytest.raises(PromptError, match=message):
        PropagationRequest(Video(), [prompt])


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_a_bad_prompt_costs_only_itself(case):
    prompt, message = BAD_PROMPTS[case]
    others = [box(2), box(3, 4)]
    good, problems = check_prompts(
        [others[0], prompt, others[1]], height=90, width=140, frame_count=10
    )
    assert good == others
    assert [problem.prompt for problem in problems] == [prompt]
    with pytest.raises(PromptError, match=message):
        raise PromptError(problems[0].reason)


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [
        ([], {}, "no prompts"),
        ([box(1, 2)], {"start": 3}, "on frame 3: outside frames 4 to 10"),
        ([box(1, 5)], {"start": 3, "stop": 5}, "outside frames 4 to 5"),
        ([box(1, 6)], {"stop": 5}, "outside frames 1 to 5"),
        ([box(1)], {"stop": 11}, "give 0 <= start"),
        ([box(1, 2)], {"start": 3, "stop": 2}, "give 0 <= start"),
        ([box(1)], {"start": 4, "stop": 4}, "no range"),
        ([box(1)], {"stop": 0}, "no range"),
        ([box(1)], {"start": -1}, "no range"),
        ([box(1)], {"direction": "sideways"}, "'sideways'.* forward, backward, both"),
        (
            [box(1, 2, "cat"), box(1, 3, "dog")],
            {},
            "labeled 'dog', elsewhere 'cat'; give different objects different ids",
        ),
    ],
)
def test_bad_requests(prompts, arguments, message):
    with pytest.raises(PromptError, match=message):
        PropagationRequest(Video(), prompts, **arguments)


def click(object_id: int, frame: int, *, on: bool = False) -> Prompt:
    return Prompt(
        object_id,
        frame,
        points=np.array([[20.0, 20.0]]),
        point_signs=np.array([on]),
    )


@pytest.mark.parametrize(
    ("prompts", "direction", "bad"),
    [
        # nothing says where the object is
        ([click(1, 3)], "both", [0]),
        ([click(1, 3), box(2, 3)], "forward", [0]),
        # it is carried to the click
        ([box(1, 2), click(1, 3)], "forward", []),
        ([click(1, 3), box(1, 2)], "forward", []),
        ([box(1, 3), click(1, 3)], "forward", []),
        ([click(1, 1, on=True), click(1, 3)], "forward", []),
        ([box(1, 4), click(1, 3)], "backward", []),
        ([box(1, 4), click(1, 3)], "both", []),
        # it is not
        ([box(1, 4), click(1, 3)], "forward", [1]),
        ([box(1, 2), click(1, 3)], "backward", [1]),
        # the prompt that would carry it there is bad itself
        ([Prompt(1, 2), click(1, 3)], "forward", [0, 1]),
    ],
)
def test_clicks_off_an_object_correct_what_is_carried(prompts, direction, bad):
    good, problems = check_prompts(
        prompts, height=90, width=140, frame_count=10, direction=direction
    )
    assert [prompts.index(problem.prompt) for problem in problems] == bad
    assert good == [p for n, p in enumerate(prompts) if n not in bad]
    if bad:
        assert "off the object" in problems[-1].reason
        with pytest.raises(PromptError, match="give one on it"):
            PropagationRequest(Video(), prompts, direction)
    else:
        assert PropagationRequest(Video(), prompts, direction).prompts == prompts


EDGES = st.floats(-50, 200) | st.just(float("nan"))


@st.composite
def any_prompt(draw: st.DrawFn) -> Prompt:
    points = draw(st.none() | st.lists(st.tuples(EDGES, EDGES), max_size=3))
    return Prompt(
        draw(st.integers(0, 2)),
        draw(st.integers(-1, 10)),
        box=draw(st.none() | st.tuples(EDGES, EDGES, EDGES, EDGES)),
        points=None if points is None else np.reshape(points, (-1, 2)).astype(float),
        point_signs=draw(st.none() | st.lists(st.booleans(), max_size=3)),
        mask=draw(st.sampled_from([None, None, np.eye(90, 140, dtype=bool)])),
        label=draw(st.sampled_from([None, "cat", "dog"])),
    )


@settings(deadline=None)
@given(
    st.lists(any_prompt(), max_size=6),
    st.sampled_from(["forward", "backward", "both"]),
    st.integers(0, 4),
    st.integers(6, 10),
)
def test_what_is_good_can_be_propagated(prompts, direction, start, stop):
    span = {"start": start, "stop": stop, "direction": direction}
    good, problems = check_prompts(
        prompts, height=90, width=140, frame_count=10, **span
    )
    assert len(good) + len(problems) == len(prompts)
    if good:
        request = PropagationRequest(Video(), good, **span)
        for current in plan_passes(request):
            assert current.entries and start <= min(current.frames) < stop
            assert current.emitted(current.frames[-1])
    if problems:
        with pytest.raises(PromptError):
            PropagationRequest(Video(), prompts, **span)


def test_a_video_without_frames():
    with pytest.raises(PromptError, match="no frames"):
        PropagationRequest(Video(0), [box(1)])


def test_every_bad_prompt_is_named():
    with pytest.raises(PromptError, match=r"object 1 on frame 12.*object 7 on frame 1"):
        PropagationRequest(Video(), [box(1, 11), box(2), Prompt(7, 0)])


def test_one_label_may_be_given_once():
    prompts = [box(1, 2, "cat"), box(1, 3), box(2, 3, "dog")]
    assert PropagationRequest(Video(), prompts, start=2).end == 10
