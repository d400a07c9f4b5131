from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.captioning.summary import change_summary


@pytest.mark.parametrize(
    ("captions", "summary"),
    [
        (
            ["A dog runs across the yard. It is brown.", "It lies under a tree."],
            "A dog runs across the yard, then it lies under a tree.",
        ),
        # a window that says what the one before it said
        (
            ["A red car waits.", "A red car waits!", "The car turns left"],
            "A red car waits, then the car turns left.",
        ),
        # back to the beginning is a change too
        (
            ["A cat sits.", "A cat jumps.", "A cat sits."],
            "A cat sits, then a cat jumps, then a cat sits.",
        ),
        # names keep their capital
        (["A man waits.", "Fred waves."], "A man waits, then Fred waves."),
        # no end of a sentence inside a number
        (["It is 1.5 m long.", "It shrinks."], "It is 1.5 m long, then it shrinks."),
        (["A cat sits."], None),
        (["A cat sits.", "The cat sits.", ""], None),
        ([], None),
    ],
)
def test_change_summary(captions: list[str], summary: str | None) -> None:
    assert change_summary(captions) == summary


@given(st.lists(st.text()))
def test_nothing_is_added_but_then(captions: list[str]) -> None:
    summary = change_summary(captions)
    if summary is not None:
        known = set(re.findall(r"\w+", " ".join(captions).lower())) | {"then"}
        assert set(re.findall(r"\w+", summary.lower())) <= known
