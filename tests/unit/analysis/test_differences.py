from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.analysis.differences import (
    Subject,
    base,
    groups,
    tell_apart,
    uniqueness,
)

TEXT = "A red car, about 5% of the frame, stays nearly still in the frame."


def subject(
    number: int,
    text: str = TEXT,
    *,
    x: float | None = None,
    y: float = 0.5,
    frames: tuple[int, ...] = (0, 1, 2),
    image: bool = False,
    **facts: object,
) -> Subject:
    if x is None:
        return Subject(number, text, **facts)
    boxes = np.tile([x - 0.05, y - 0.05, x + 0.05, y + 0.05], (len(frames), 1))
    return Subject(number, text, frames=frames, boxes=boxes, image=image, **facts)


def stated(subjects: list[Subject]) -> list[str]:
    captions, alone = tell_apart(subjects)
    assert not alone
    assert [base(caption) for caption in captions] == [s.caption for s in subjects]
    beginning = f"Among the {len(subjects)} objects described alike, only this one "
    said = [caption.removeprefix(TEXT + " ") for caption in captions]
    assert all(text.startswith(beginning) for text in said)
    return [text.removeprefix(beginning).removesuffix(".") for text in said]


TOLD_APART = {
    "by color": (
        [subject(1, color="red"), subject(2, color="blue")],
        ["has red as its main color", "has blue as its main color"],
    ),
    "from the left": (
        [subject(1, x=0.8), subject(2, x=0.2), subject(3, x=0.5)],
        [
            "is the rightmost in frame 1",
            "is the leftmost in frame 1",
            "is the second from the left in frame 1",
        ],
    ),
    "from the top": (
        [subject(1, x=0.5, y=0.8), subject(2, x=0.505, y=0.2)],
        ["is the lowest in frame 1", "is the topmost in frame 1"],
    ),
    "on the first frame that they share": (
        [
            subject(1, x=0.8, frames=(3, 4, 7)),
            subject(2, x=0.2, frames=(4, 5, 6, 7)),
        ],
        ["is the rightmost in frame 5", "is the leftmost in frame 5"],
    ),
    "in an image": (
        [subject(1, x=0.8, frames=(0,), image=True), subject(2, x=0.2, frames=(0,))],
        ["is the rightmost", "is the leftmost in frame 1"],
    ),
    "by size": (
        [subject(1, area=0.2), subject(2, area=0.1)],
        ["is the largest", "is the smallest"],
    ),
    "by direction": (
        [subject(1, direction="still"), subject(2, direction="up and left")],
        ["stays still", "moves up and left"],
    ),
    "by speed": (
        [subject(1, speed=0.5), subject(2, speed=0.1)],
        ["is the fastest", "is the slowest"],
    ),
    "by the first place": (
        [
            subject(1, x=0.2, frames=(0, 1)),
            subject(2, x=0.8, frames=(5, 6)),
        ],
        [
            "is first seen on the left of the frame",
            "is first seen on the right of the frame",
        ],
    ),
    "by time": (
        [subject(1, x=0.5, frames=(0, 1)), subject(2, x=0.5, frames=(5, 6))],
        ["is first seen in frame 1", "is first seen in frame 6"],
    ),
    "by the last frame": (
        [subject(1, x=0.5, frames=(0, 1)), subject(2, x=0.5, frames=(0, 6))],
        ["is last seen in frame 2", "is last seen in frame 7"],
    ),
    "by the exact place": (
        [subject(1, x=0.5), subject(2, x=0.515)],
        [
            "is first seen with its center at 50% of the width and 50% of the height",
            "is first seen with its center at 52% of the width and 50% of the height",
        ],
    ),
    "by two facts together": (
        [
            subject(1, color="red", direction="left"),
            subject(2, color="red", direction="right"),
            subject(3, color="blue", direction="left"),
        ],
        [
            "has red as its main color and moves left",
            "moves right",
            "has blue as its main color",
        ],
    ),
}


@pytest.mark.parametrize(
    ("subjects", "expected"), TOLD_APART.values(), ids=TOLD_APART.keys()
)
def test_differences_that_are_stated(
    subjects: list[Subject], expected: list[str]
) -> None:
    assert stated(subjects) == expected


NOT_TOLD = {
    "nothing is known": [subject(1), subject(2)],
    "nothing differs": [subject(1, color="red", x=0.5), subject(2, color="red", x=0.5)],
    "known of one alone": [subject(1, color="red", area=0.3), subject(2)],
    "areas differ by an error": [subject(1, area=0.100), subject(2, area=0.105)],
    "speeds differ by an error": [subject(1, speed=0.10), subject(2, speed=0.12)],
}


@pytest.mark.parametrize("subjects", NOT_TOLD.values(), ids=NOT_TOLD.keys())
def test_nothing_is_invented(subjects: list[Subject]) -> None:
    captions, alone = tell_apart(subjects)
    assert captions == [TEXT, TEXT]
    assert alone == {0, 1}
    assert uniqueness([subjects]).same == 2


def test_what_differs_from_some_is_said_without_only() -> None:
    subjects = [
        subject(1, color="red"),
        subject(2, color="red"),
        subject(3, color="blue"),
    ]
    captions, alone = tell_apart(subjects)
    assert alone == {0, 1}
    assert captions[0] == captions[1]
    assert captions[0].endswith(
        "Like 2 others described alike, this one has red as its main color."
    )
    assert captions[2].endswith("only this one has blue as its main color.")


def test_who_is_compared() -> None:
    other = "Two dogs run over a wide green meadow."
    subjects = [
        subject(1, color="red"),
        subject(1, color="blue"),  # another window of the same object
        subject(2, other, color="red"),
        subject(3, other.replace("wide ", ""), color="blue"),
        subject(4, "Something else entirely.", color="red"),
    ]
    assert groups(subjects) == [[2, 3]]
    captions, _ = tell_apart(subjects)
    changed = [n for n, s in enumerate(subjects) if captions[n] != s.caption]
    assert changed == [2, 3]
    assert groups(subjects, threshold=0.95) == []


def test_captions_that_were_told_apart_are_so_again() -> None:
    subjects = [subject(1, color="red"), subject(2, color="blue")]
    once, _ = tell_apart(subjects)
    again = [
        Subject(s.object_id, text, color=s.color)
        for s, text in zip(subjects, once, strict=True)
    ]
    assert tell_apart(again)[0] == once
    before, after = uniqueness([subjects]), uniqueness([again])
    assert (before.captions, before.same, before.alike) == (2, 2, 2)
    assert (after.captions, after.same, after.alike) == (2, 0, 0)
    assert before.similarity == 1
    assert after.similarity is not None and after.similarity < 1


def test_a_caption_without_an_end_gets_one() -> None:
    subjects = [subject(n, "a dog", area=n / 10) for n in (1, 2)]
    captions, _ = tell_apart(subjects)
    assert captions[0].startswith("a dog. Among the 2 objects")
    again, _ = tell_apart(
        [subject(n, text, area=n / 10) for n, text in enumerate(captions, start=1)]
    )
    assert again == captions


def test_uniqueness_of_nothing() -> None:
    assert uniqueness([]).similarity is None
    assert uniqueness([[subject(1)], [subject(2)]]).same == 0, "of different videos"


some = st.builds(
    subject,
    st.integers(0, 7),
    x=st.one_of(st.none(), st.sampled_from([0.1, 0.11, 0.5, 0.9])),
    y=st.sampled_from([0.1, 0.5, 0.9]),
    frames=st.sampled_from([(0, 1), (1, 2), (0, 1, 2), (5,)]),
    color=st.sampled_from([None, "red", "blue"]),
    area=st.sampled_from([None, 0.1, 0.105, 0.3]),
    speed=st.sampled_from([None, 0.0, 0.2]),
    direction=st.sampled_from([None, "still", "left"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(some, max_size=8, unique_by=lambda s: s.object_id))
def test_what_is_told_apart_differs_pairwise_and_holds(subjects: list[Subject]) -> None:
    captions, alone = tell_apart(subjects)
    for one, two in itertools.combinations(range(len(subjects)), 2):
        if captions[one] == captions[two]:
            assert {one, two} <= alone
    for number, (own, caption) in enumerate(zip(subjects, captions, strict=True)):
        others = [s for s in subjects if s is not own]
        if "the largest" in caption:
            assert all(s.area is not None and own.area > s.area for s in others)
        if "has red" in caption:
            assert own.color == "red"
        if "stays still" in caption:
            assert own.direction == "still"
        for word, frame in re.findall(r"(first|last) seen in frame (\d+)", caption):
            assert own.frames[0 if word == "first" else -1] == int(frame) - 1
        if match := re.search(r"is the leftmost in frame (\d+)", caption):
            frame = int(match[1]) - 1
            assert all(s.box(frame)[0] > own.box(frame)[0] for s in others)
        assert (number in alone) == ("only this one" not in caption) or len(others) == 0
