from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.measuring.colors import EXAMPLES, color_shares, name_pixels


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((255, 0, 0), "red"),
        ((140, 20, 25), "red"),
        ((255, 140, 20), "orange"),
        ((250, 220, 40), "yellow"),
        ((30, 120, 40), "green"),
        ((40, 60, 25), "green"),
        ((0, 150, 150), "teal"),
        ((30, 60, 200), "blue"),
        ((15, 25, 70), "blue"),
        ((135, 206, 250), "blue"),
        ((110, 40, 140), "purple"),
        ((250, 160, 190), "pink"),
        ((100, 65, 35), "brown"),
        ((225, 205, 165), "beige"),
        ((12, 12, 14), "black"),
        ((120, 122, 121), "gray"),
        ((245, 246, 244), "white"),
    ],
)
def test_colors_have_the_names_that_people_give_them(
    color: tuple[int, int, int], name: str
) -> None:
    assert name_pixels(np.array([color], np.uint8)) == [name]


def test_each_example_has_its_own_name() -> None:
    for name, codes in EXAMPLES.items():
        pixels = np.array([list(bytes.fromhex(code)) for code in codes], np.uint8)
        assert name_pixels(pixels) == [name] * len(codes)


def test_shares_are_of_the_region_without_its_rim() -> None:
    frame = np.full((60, 80, 3), (0, 160, 0), np.uint8)
    frame[10:50, 10:40] = (220, 20, 20)
    frame[10:50, 40:50] = (250, 250, 250)
    mask = np.zeros((60, 80), bool)
    mask[9:51, 9:51] = True  # one pixel of green all around
    shares = dict(color_shares([frame], [mask]))
    assert list(shares) == ["red", "white"]
    assert shares["red"] == pytest.approx(0.75, abs=0.05)
    assert sum(shares.values()) == pytest.approx(1)


def test_a_region_thinner_than_its_rim_still_has_a_color() -> None:
    frame = np.full((20, 20, 3), (0, 0, 200), np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5, 5:9] = True
    assert color_shares([frame], [mask]) == (("blue", 1.0),)


def test_no_region_no_colors() -> None:
    frame = np.zeros((20, 20, 3), np.uint8)
    assert color_shares([frame], [np.zeros((20, 20), bool)]) == ()
