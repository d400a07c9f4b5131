from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.measured import MeasuredCaptioner, describe
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.measuring.regions import Measurements

FACTS = Measurements(
    first_frame=0,
    last_frame=99,
    visible_fraction=1.0,
    visible_spans=((0, 99),),
    mean_area=0.052,
    colors=(("red", 0.7), ("black", 0.1)),
    first_place="lower right",
    last_place="left",
    speed=0.31,
    direction="left",
    turns=0,
    camera_shift=0.0,
)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {},
            "A red car, about 5% of the frame, moves left, from the lower right to the "
            "left of the frame, at about 0.3 frame widths per second.",
        ),
        (
            {"first_place": "right", "enters": "right", "leaves": "left"},
            "A red car, about 5% of the frame, comes in from the right, moves from the "
            "right to the left of the frame at about 0.3 frame widths per second, and "
            "goes out on the left.",
        ),
        (
            {"first_place": "middle", "last_place": "middle", "camera_shift": 0.4},
            "A red car, about 5% of the frame, moves left across the scene at about "
            "0.3 frame widths per second, followed by the camera, in the middle of the "
            "frame.",
        ),
        (
            {"camera_shift": 0.4, "depth": "away"},
            "A red car, about 5% of the frame, moves left across the scene at about "
            "0.3 frame widths per second, from the lower right to the left of the "
            "frame, getting farther from the camera.",
        ),
        (
            {"last_place": "lower right", "turns": 3, "speed": 0.02},
            "A red car, about 5% of the frame, moves left in the lower right of the "
            "frame at less than 0.1 frame widths per second, turning sharply 3 times.",
        ),
        (
            {"direction": "still", "speed": 0.0, "last_place": "lower right"},
            "A red car, about 5% of the frame, stays nearly still in the lower right "
            "of the frame.",
        ),
        (
            {"direction": "still", "speed": 0.0, "camera_shift": 0.5},
            "A red car, about 5% of the frame, stays nearly still while the camera "
            "moves, shifting from the lower right to the left of the frame.",
        ),
        (
            {
                "direction": "still",
                "speed": 0.0,
                "camera_shift": 0.5,
                "last_place": "lower right",
            },
            "A red car, about 5% of the frame, stays nearly still in the lower right "
            "of the frame while the camera moves.",
        ),
        (
            {"direction": "towards", "depth": "towards", "last_place": "lower right"},
            "A red car, about 5% of the frame, gets closer to the camera, in the lower "
            "right of the frame.",
        ),
        (
            {"direction": None, "speed": None, "turns": None, "camera_shift": None},
            "A red car, about 5% of the frame, is seen first in the lower right and "
            "last on the left of the frame.",
        ),
        (
            {
                "direction": "still",
                "last_place": "lower right",
                "visible_spans": ((0, 9), (20, 39)),
            },
            "A red car, about 5% of the frame, stays nearly still in the lower right "
            "of the frame and is not found once in between, about 25% of the time.",
        ),
        (
            {"colors": (("red", 0.3), ("green", 0.15)), "mean_area": 0.002},
            "A car, less than 1% of the frame, moves left, from the lower right to the "
            "left of the frame, at about 0.3 frame widths per second. The main color "
            "of the region is red.",
        ),
    ],
    ids=[
        "moves",
        "enters_and_leaves",
        "followed",
        "camera_moves_otherwise",
        "turns",
        "still",
        "still_under_a_moving_camera",
        "still_in_the_picture_too",
        "closer",
        "motion_unknown",
        "hidden",
        "no_color_rules",
    ],
)
def test_sentences(changes: dict[str, Any], text: str) -> None:
    assert describe(replace(FACTS, **changes), "car", moving=True) == text


@pytest.mark.parametrize(
    ("label", "colors", "start"),
    [
        (None, ("orange",), "An orange object, "),
        ("", ("red",), "A red object, "),
        ("traffic_light", ("red", "black"), "A red and black traffic light, "),
        ("dogs", ("black",), "Black dogs, "),
        ("glass of water", ("white",), "A white glass of water, "),
        # No color is said of a person, whose clothes may have it.
        ("person", ("black",), "A person, "),
        ("old woman with a hat", ("white",), "An old woman with a hat, "),
        ("a car that waits at the curb", ("white",), "A car that waits at the curb, "),
        ("goalkeepers", ("brown",), "Goalkeepers, "),
        ("the cat", ("gray",), "The cat, "),
        ("2 birds", ("gray",), "2 birds, "),
        ("SUV", (), "An SUV, "),
        ("UFO", (), "A UFO, "),
        ("unicycle", (), "A unicycle, "),
        ("umbrella", (), "An umbrella, "),
        ("hourglass", (), "An hourglass, "),
        ("bus", (), "A bus, "),
    ],
)
def test_grammar_of_labels(
    label: str | None, colors: tuple[str, ...], start: str
) -> None:
    facts = replace(FACTS, colors=tuple((name, 1 / len(colors)) for name in colors))
    text = describe(facts, label, moving=True)
    assert text.startswith(start)
    plural = label in ("dogs", "goalkeepers", "2 birds")
    assert f"of the frame, {'move' if plural else 'moves'} left" in text
    if colors and not start.lower().count(colors[0]):
        assert f"The main color of the region is {colors[0]}." in text


def disc_clip(**changes: Any) -> RegionClip:
    frame = np.full((90, 120, 3), (30, 120, 40), np.uint8)
    frame[20:50, 10:40] = (20, 40, 200)
    mask = np.zeros((90, 120), bool)
    mask[20:50, 10:40] = True
    return replace(RegionClip(frames=[frame], masks=[mask], label="ball"), **changes)


def test_captions_of_images() -> None:
    captioner: Captioner = MeasuredCaptioner()
    (caption,) = captioner.caption([disc_clip()])
    assert caption.text == "A blue ball, about 8% of the image, is on the left."
    assert caption.label == "ball"
    assert caption.attributes == (("color:blue", 1.0),)
    assert caption.confidence is None
    assert caption.error is None


def test_without_a_label_the_color_names_the_object() -> None:
    (caption,) = MeasuredCaptioner().caption([disc_clip(label=None)])
    assert caption.label == "blue object"
    assert caption.text.startswith("A blue object, ")


def test_a_bad_clip_leaves_the_others_alone() -> None:
    good = disc_clip()
    bad = [
        disc_clip(masks=[np.zeros((90, 120), bool)]),
        disc_clip(masks=[np.ones((45, 120), bool)]),
        disc_clip(masks=[]),
    ]
    alone = MeasuredCaptioner().caption([good])
    first, *errors, last = MeasuredCaptioner().caption([good, *bad, good])
    assert [first] == [last] == alone
    assert all(caption.error and not caption.text for caption in errors)
    assert "empty" in (errors[0].error or "")


def test_there_is_no_prompt() -> None:
    with pytest.raises(BackendError, match="no prompt"):
        MeasuredCaptioner().caption([disc_clip()], prompt="What is it?")


def test_info() -> None:
    info = MeasuredCaptioner().info
    assert (info.name, info.model, info.license) == (
        "measured",
        "measured",
        "Apache-2.0",
    )
    assert info.frames == 16
    assert not info.prompts
