"""The fallback without weights, on squares that move."""

from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.evaluation.masks import region_similarity
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.flow import FlowOptions, FlowPropagator


@pytest.mark.parametrize(
    "prompt",
    [
        {"box": (60, 50, 84, 74)},
        {"mask": None},
    ],
    ids=["box", "mask"],
)
def test_it_follows_and_keeps_objects_apart(squares, prompt):
    prompts = [
        Prompt(9, 0, mask=squares.masks[0] == 1),
        Prompt(
            4, 0, **(prompt if "box" in prompt else {"mask": squares.masks[0] == 2})
        ),
    ]
    results = list(FlowPropagator().propagate(PropagationRequest(squares, prompts)))
    assert [r.frame for r in results] == list(range(8))
    for result in results:
        assert set(result.objects) == {9, 4}
        nine, four = result.objects[9], result.objects[4]
        truth = squares.masks[result.frame]
        assert region_similarity(nine.mask, truth == 1) > 0.7
        assert region_similarity(four.mask, truth == 2) > 0.7
        assert not (nine.mask & four.mask).any()
        assert 0 <= nine.score <= 1


def test_an_object_that_vanishes_has_no_mask(squares):
    class Cut:
        height, width = squares.height, squares.width

        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index < 2:
                return squares[index]
            return np.full((90, 120, 3), 40, dtype=np.uint8)

    prompts = [Prompt(1, 0, mask=squares.masks[0] == 1)]
    results = list(FlowPropagator().propagate(PropagationRequest(Cut(), prompts)))
    assert results[1].objects[1].mask is not None
    assert results[3].objects[1].mask is None
    assert results[3].objects[1].score < 0.2 < results[1].objects[1].score


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_resume_changes_nothing(squares, cut):
    prompts = [
        Prompt(1, 2, mask=squares.masks[2] == 1),
        Prompt(2, 4, box=(58, 48, 86, 76)),
    ]
    propagator = FlowPropagator()
    whole = list(
        propagator.propagate(PropagationRequest(squares, prompts, direction="both"))
    )
    run = propagator.propagate(PropagationRequest(squares, prompts, direction="both"))
    for _ in range(cut):
        next(run)
    rest = list(
        propagator.propagate(
            PropagationRequest(
                squares, prompts, direction="both", checkpoint=run.checkpoint()
            )
        )
    )
    assert len(whole) == cut + len(rest)
    for a, b in zip(whole[cut:], rest, strict=True):
        assert a.frame == b.frame and a.objects.keys() == b.objects.keys()
        for k in a.objects:
            assert a.objects[k].score == b.objects[k].score
            assert np.array_equal(a.objects[k].mask, b.objects[k].mask)


@pytest.mark.parametrize(
    "prompt",
    [
        {"points": np.array([[52.0, 32.0]])},  # one point
        {"points": np.array([[45.0, 25.0], [5.0, 5.0]]),
         "point_signs": np.array([True, False])},  # one on, one off
        {"box": (-20.0, -20.0, 70.0, 50.0)},  # reaches out of the frame
        {"box": (50.2, 30.1, 50.4, 30.3)},  # inside one pixel
        {"box": (119.6, 89.6, 140.0, 130.0)},  # the last pixel's corner
    ],
    ids=["point", "signs", "outside", "tiny", "corner"],
)  # fmt: skip
def test_any_prompt_gives_some_mask(squares, prompt):
    first = next(
        FlowPropagator().propagate(
            PropagationRequest(squares, [Prompt(1, 0, **prompt)])
        )
    )
    assert first.objects[1].mask.any()
    assert first.prompted == {1}


HALF = np.array([[66.0, 68.0]])
"""In the lower part of the blue square."""


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("apart", [True, False])
def test_points_off_the_object_leave_a_part_out(squares, kind, apart):
    given = {"box": (60, 50, 84, 74), "mask": squares.masks[0] == 2}
    points = {"points": HALF, "point_signs": np.array([False])}
    whole = Prompt(1, 0, **{kind: given[kind]})
    prompts = [whole, Prompt(1, 0, **points)]
    if not apart:
        prompts = [Prompt(1, 0, **{kind: given[kind]}, **points)]
    expected, found = (
        next(FlowPropagator().propagate(PropagationRequest(squares, p))).objects[1].mask
        for p in ([whole], prompts)
    )
    assert expected[68, 66] and not found[68, 66]
    assert found.any() and not (found & ~expected).any()


def test_a_click_off_the_object_corrects_what_is_carried(squares):
    prompts = [Prompt(1, 0, mask=squares.masks[0] == 2)]
    click = Prompt(1, 3, points=HALF, point_signs=np.array([False]))
    plain, corrected = (
        [r.objects[1].mask for r in FlowPropagator().propagate(request)]
        for request in (
            PropagationRequest(squares, prompts),
            PropagationRequest(squares, [*prompts, click]),
        )
    )
    assert all(np.array_equal(plain[t], corrected[t]) for t in range(3))
    assert plain[3][68, 66] and not corrected[3][68, 66]
    assert corrected[3].sum() > 0.3 * plain[3].sum()


def test_options():
    assert FlowOptions.from_mapping({"sharpen": False}) == FlowOptions(sharpen=False)
    with pytest.raises(OptionError, match="unknown option 'sharp'"):
        FlowOptions.from_mapping({"sharp": False})
    with pytest.raises(OptionError, match="sharpen"):
        FlowOptions(sharpen="big")
