"""The order of frames, what is given out, validation and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Frame, ObjectMask, Prompt
from fiftyone_regioncap.propagation.stream import (
    StreamPropagation,
    check_prompts,
    plan_passes,
)


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


def prompt(object_id: int, frame: int, label: str | None = None) -> Prompt:
    return Prompt(object_id, frame, box=(1, 1, 4, 4), label=label)


@pytest.mark.parametrize(
    ("prompts", "direction", "start", "stop", "expected"),
    [
        # one object in the middle, forward
        ([(7, 3)], "forward", 0, 6, [(3, {7}), (4, {7}), (5, {7})]),
        # backward ends at start
        ([(7, 3)], "backward", 1, 6, [(3, {7}), (2, {7}), (1, {7})]),
        # both: no frame twice
        ([(7, 3)], "both", 2, 5, [(3, {7}), (4, {7}), (2, {7})]),
        # both from the first frame needs no second walk
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
        # both: frames between the first prompts that nobody needs are not given out
        (
            [(1, 0), (2, 2)], "both", 0, 3,
            [(0, {1}), (1, {1}), (2, {1, 2}), (1, {2}), (0, {2})],
        ),
    ],
)  # fmt: skip
def test_order_and_entries(prompts, direction, start, stop, expected):
    prompts = [prompt(*p) for p in prompts]
    passes = plan_passes(prompts, direction, start, stop)
    run = StreamPropagation(Video(), passes, Counting)
    assert [(r.frame, set(r.objects)) for r in run] == expected


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=6),
    st.sampled_from(["forward", "backward", "both"]),
    st.integers(0, 20),
)
def test_interrupted_anywhere_it_goes_on_as_if_not(where, direction, cut):
    passes = plan_passes([prompt(*w) for w in where], direction, 0, 10)
    whole = list(StreamPropagation(Video(), passes, Counting))
    pairs = [(r.frame, k) for r in whole for k in r.objects]
    assert len(pairs) == len(set(pairs))
    run = StreamPropagation(Video(), passes, Counting)
    begun = [r for r, _ in zip(run, range(cut), strict=False)]
    resumed = StreamPropagation(Video(), passes, Counting, run.checkpoint())
    assert whole[: len(begun)] == begun
    # zip has taken one more result than it gave back when it stopped for the count
    assert list(resumed) == whole[len(begun) + (len(begun) < len(whole)) :]


@pytest.mark.parametrize(
    ("prompts", "start", "stop", "message"),
    [
        ([], 0, None, "no prompts"),
        ([prompt(1, 12)], 0, None, "frames 0 to 9"),
        ([prompt(1, 2)], 3, None, "outside the frames of interest"),
        ([prompt(1, 5)], 3, 5, "outside the frames of interest"),
        ([prompt(1, 2)], 3, 2, "give 0 <= start"),
        ([prompt(1, 2)], 0, 11, "give 0 <= start"),
        ([prompt(1, 2, "cat"), prompt(1, 3, "dog")], 0, None, "'dog', elsewhere 'cat'"),
    ],
)
def test_bad_prompts_are_refused(prompts, start, stop, message):
    with pytest.raises(PromptError, match=message):
        check_prompts(prompts, Video(), start, stop)


def test_one_label_may_be_given_once():
    prompts = [prompt(1, 2, "cat"), prompt(1, 3), prompt(2, 3, "dog")]
    assert check_prompts(prompts, Video(), 2, None) == 10
