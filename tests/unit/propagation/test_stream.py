"""The order of frames, what is emitted, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import Frame, Mask, ObjectMask, Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.stream import StreamPropagation


class Video:
    """Ten black frames."""

    height, width = 6, 8

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Frame:
        return np.full((6, 8, 3), index, dtype=np.uint8)


class Erasing:
    """Carries masks as they are."""

    def __init__(self) -> None:
        self.masks: dict[int, Mask] = {}

    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        self.masks |= {p.object_id: p.mask for p in prompts if p.mask is not None}
        return {k: ObjectMask(mask, 1.0) for k, mask in self.masks.items()}

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {str(k): mask for k, mask in self.masks.items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        self.masks = {int(k): mask.astype(bool) for k, mask in state.items()}


class Counting:
    """A tracker whose scores depend on all that it has seen."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        assert frame[0, 0, 0] == index
        self.seen = {k: v / 2 + index for k, v in self.seen.items()}
        self.seen |= {prompt.object_id: 0.0 for prompt in prompts}
        return {k: ObjectMask(None, v) for k, v in self.seen.items()}

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {"ids": np.array(list(self.seen)), "v": np.array([*self.seen.values()])}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        self.seen = dict(zip(state["ids"].tolist(), state["v"].tolist(), strict=True))


def prompt(object_id: int, frame: int) -> Prompt:
    return Prompt(object_id, frame, box=(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("prompts", "direction", "start", "stop", "expected"),
    [
        # one object in the middle, forward
        ([(7, 3)], "forward", 0, 6, [(3, {7}), (4, {7}), (5, {7})]),
        # backward ends at start
        ([(7, 3)], "backward", 1, 6, [(3, {7}), (2, {7}), (1, {7})]),
        # both: no frame twice
        ([(7, 3)], "both", 2, 5, [(3, {7}), (4, {7}), (2, {7})]),
        # both from the first frame needs no second pass
        ([(7, 0)], "both", 0, 2, [(0, {7}), (1, {7})]),
        # a later object enters with its prompt
        ([(1, 0), (2, 1)], "forward", 0, 3, [(0, {1}), (1, {1, 2}), (2, {1, 2})]),
        # backward carries each object from its last prompt
        (
            [(1, 0), (1, 2), (2, 1)], "backward", 0, 3,
            [(2, {1}), (1, {1, 2}), (0, {1, 2})],
        ),
        # both: each object on the frames before its own first prompt
        (
            [(1, 1), (2, 3)], "both", 0, 4,
            [(1, {1}), (2, {1}), (3, {1, 2}), (2, {2}), (1, {2}), (0, {1, 2})],
        ),
        # both: frames between the first prompts that nobody needs are not emitted
        (
            [(1, 0), (2, 2)], "both", 0, 3,
            [(0, {1}), (1, {1}), (2, {1, 2}), (1, {2}), (0, {2})],
        ),
    ],
)  # fmt: skip
def test_order_and_entries(prompts, direction, start, stop, expected):
    prompts = [prompt(*p) for p in prompts]
    request = PropagationRequest(Video(), prompts, direction, start, stop)
    run = StreamPropagation(request, Counting)
    assert [(r.frame, set(r.objects)) for r in run] == expected


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=6),
    st.sampled_from(["forward", "backward", "both"]),
    st.integers(0, 20),
)
def test_interrupted_anywhere_it_goes_on_as_if_not(where, direction, cut):
    request = PropagationRequest(Video(), [prompt(*w) for w in where], direction)
    whole = list(StreamPropagation(request, Counting))
    pairs = [(r.frame, k) for r in whole for k in r.objects]
    assert len(pairs) == len(set(pairs))
    run = StreamPropagation(request, Counting)
    begun = [r for r, _ in zip(run, range(cut), strict=False)]
    again = replace(request, checkpoint=run.checkpoint())
    resumed = StreamPropagation(again, Counting)
    assert whole[: len(begun)] == begun
    # zip has taken one more result than it gave back when it stopped for the count
    assert list(resumed) == whole[len(begun) + (len(begun) < len(whole)) :]


def square(object_id: int, frame: int) -> Prompt:
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:5, 1:7] = True
    return Prompt(object_id, frame, mask=mask)


def off(object_id: int, frame: int) -> Prompt:
    points, signs = np.array([[6.5, 4.5]]), np.array([False])
    return Prompt(object_id, frame, points=points, point_signs=signs)


@pytest.mark.parametrize(
    ("prompts", "direction", "corrected"),
    [
        # from the click on, and only that object
        ([square(1, 0), square(2, 0), off(1, 4)], "forward", range(4, 10)),
        ([square(1, 9), square(2, 9), off(1, 4)], "backward", range(5)),
        # on the way that carries the object there
        ([square(1, 5), square(2, 5), off(1, 7)], "both", range(7, 10)),
        ([square(1, 5), square(2, 5), off(1, 3)], "both", range(4)),
        # beside a prompt on the same frame
        ([square(1, 0), square(2, 0), off(1, 0)], "forward", range(10)),
    ],
)
def test_clicks_off_the_object_correct_the_carried_mask(prompts, direction, corrected):
    request = PropagationRequest(Video(), prompts, direction, overlap=True)
    run = StreamPropagation(request, Erasing)
    results = {result.frame: result for result in run}
    assert results.keys() == set(range(10))
    for frame, result in results.items():
        assert result.objects[1].mask[4, 6] == (frame not in corrected)
        assert result.objects[1].mask[2, 2]
        assert result.objects[2].mask[4, 6]
        assert result.prompted == {p.object_id for p in prompts if p.frame == frame}


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": [prompt(1, 0), prompt(2, 0)]},
        {"prompts": [prompt(2, 0)]},
        {"prompts": [square(1, 0)]},
        {"direction": "both"},
        {"stop": 5},
        {"overlap": True},
        {"model": "another"},
    ],
    ids=lambda change: ",".join(change),
)
def test_a_checkpoint_of_another_run_is_refused(change):
    request = PropagationRequest(Video(), [prompt(1, 0)])
    run = StreamPropagation(request, Counting, "model")
    next(run)
    kept = run.checkpoint()
    again = replace(request, checkpoint=kept)
    assert next(StreamPropagation(again, Counting, "model")).frame == 1
    model = change.pop("model", "model")
    with pytest.raises(BackendError, match="another model, video or prompts"):
        StreamPropagation(replace(again, **change), Counting, model)
