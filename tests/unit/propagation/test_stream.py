"""The order of frames, what is emitted, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame, ObjectMask, Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.stream import StreamPropagation


class Video:
    """Ten black frames."""

    height, width = 6, 8

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Frame:
        return np.full((6, 8, 3), index, dtype=np.uint8)


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
