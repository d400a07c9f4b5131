from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.analysis.checks.measurements import (
    color_conflict,
    mentioned_directions,
    motion_conflict,
)
from fiftyone_regioncap.analysis.checks.texts import repetition, truncation
from fiftyone_regioncap.analysis.facets import facets_of


@pytest.mark.parametrize(
    ("caption", "dominant", "others", "score"),
    [
        ("A red car.", "blue", (), 1.0),
        ("A red car.", "red", (), 0.0),
        ("A red car.", "blue", ("red",), 0.0),
        ("A red and white bus.", "white", (), 0.0),
        ("A black car.", "gray", (), 0.5),
        ("A car with red wheels.", "blue", (), None),  # only its wheels
        ("A car.", "blue", (), None),
        ("A red car.", None, (), None),
        ("A crimson car.", "red", (), 0.0),
    ],
)
def test_colors_of_the_subject_against_the_measured_one(
    caption, dominant, others, score
):
    assert color_conflict(facets_of(caption), dominant, others) == score


@pytest.mark.parametrize(
    ("caption", "ways"),
    [
        ("It moves left.", {"left"}),
        ("A car turning left at the crossing", {"left"}),
        ("It runs quickly to the right.", {"right"}),
        ("It drifts upwards", {"up"}),
        ("It moves from left to right", {"right"}),
        ("It goes away from the camera", {"away"}),
        ("It comes towards the camera", {"towards"}),
        ("A man on the left holds his right hand", set()),
        ("A car to the left of a tree", set()),
        ("It comes in from the left", set()),
        ("Moving up the hill", set()),
        ("", set()),
    ],
)
def test_ways_that_captions_speak_of(caption, ways):
    assert mentioned_directions(caption) == ways


@pytest.mark.parametrize(
    ("caption", "direction", "speed", "score"),
    [
        ("It moves left.", "right", 0.2, 1.0),
        ("It moves left.", "up and left", 0.2, 0.0),
        ("It moves left.", "down", 0.2, 0.0),  # nothing says that it doesn't
        ("It moves left.", "back and forth", 0.2, 0.0),
        ("It moves left.", "still", 0.0, 0.5),
        ("It stands still.", "right", 0.2, 1.0),
        ("It stands still.", "right", 0.01, 0.0),
        ("A parked car", "right", 0.2, None),
        ("The car is parked.", "right", 0.2, 1.0),
        ("It moves towards the camera.", "away", None, 1.0),
        ("A car.", "right", 0.2, None),
        ("It moves left.", None, None, None),
    ],
)
def test_motion_against_the_measured_one(caption, direction, speed, score):
    assert motion_conflict(caption, direction, speed) == score


@pytest.mark.parametrize(
    ("caption", "low", "high"),
    [
        ("A red car turns left and then stops at a light.", 0, 0),
        ("a dog a dog a dog a dog a dog", 0.5, 1),
        ("red red red red", 1, 1),
        ("", 0, 0),
        ("word", 0, 0),
        ("A man in a red shirt. A man in a red shirt.", 0.2, 0.5),
    ],
)
def test_repetition(caption, low, high):
    assert low <= repetition(caption) <= high


@pytest.mark.parametrize(
    ("caption", "score"),
    [
        ("A red car turns left.", 0),
        ("A red car", 0),  # a phrase needs no full stop
        ("A red car with a", 1),
        ("A red car, a blue one,", 1),
        ("A red car turns left. It then sto", 0.7),
        ("He said “stop.”", 0),
        ("一辆红色的车。", 0),
        ("", 0),
        ("the", 0),
    ],
)
def test_truncation(caption, score):
    assert truncation(caption) == score


@given(st.text())
def test_scores_are_shares_for_any_text(text):
    assert 0 <= repetition(text) <= 1
    assert 0 <= truncation(text) <= 1
    assert motion_conflict(text, "right", 0.1) in (None, 0.0, 0.5, 1.0)
