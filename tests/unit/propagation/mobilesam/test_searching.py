"""Where, and how finely, objects are searched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.mobilesam.searching import (
    around,
    center,
    searched,
    side_for,
)
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid, Part
from fiftyone_regioncap.propagation.mobilesam.settings import PRESETS, Settings

GRID = Grid(480, 854, 768)
SETTINGS = PRESETS["fast"]


def label(rows, columns, grid=GRID):
    cells = torch.zeros(*grid.cells, 16, dtype=torch.uint8)
    cells[rows, columns] = 255
    return cells.flatten(0, 1)


@given(
    st.integers(0, 26), st.integers(1, 27), st.integers(0, 47), st.integers(1, 48),
    st.integers(0, 10),
)  # fmt: skip
def test_what_is_within_reach_is_searched(top, height, left, width, reach):
    one = label(slice(top, top + height), slice(left, left + width))
    part = searched([one], GRID, reach)
    inside = torch.zeros(GRID.cells, dtype=torch.bool)
    inside[part.slices()] = True
    assert inside.flatten()[around(one, GRID, reach)].all()
    # Whole windows of the encoder's attention, as in the whole frame.
    for found, whole in zip((part.rows, part.columns), GRID.cells, strict=True):
        assert found.start % 7 == 0
        assert found.stop % 7 == 0 or found.stop == whole


def test_lost_objects_are_searched_everywhere():
    one = label(slice(2, 4), slice(5, 9))
    assert searched([one, None], GRID, 2) == GRID.whole
    assert searched([], GRID, 2) == GRID.whole
    assert searched([one], GRID, 2).shape == (7, 14)


def test_the_center_is_in_cells():
    assert center(label(slice(2, 5), slice(10, 11)), GRID) == (3.0, 10.0)


def test_a_part_is_numbered_from_the_corner_of_another():
    outer, inner = Part(range(7, 21), range(0, 14)), Part(range(9, 30), range(2, 5))
    assert inner.within(outer) == Part(range(2, 14), range(2, 5))


@pytest.mark.parametrize(
    ("boxes", "fast", "balanced"),
    [
        ([(0, 0, 854, 480)], 448, 768),
        ([(0, 0, 100, 100), (700, 300, 854, 480)], 448, 768),
        ([(400, 200, 500, 300)], 512, 896),
        ([(100, 100, 250, 300)], 640, 896),
        ([(150, 20, 700, 460)], 448, 768),
    ],
    ids=["all", "two far apart", "small", "small, at the windows' edges", "large"],
)
def test_the_frame_is_encoded_as_fine_as_costs_allow(boxes, fast, balanced):
    prompts = [Prompt(n, 3, box=box) for n, box in enumerate(boxes)]
    assert side_for(prompts, 480, 854, SETTINGS) == fast
    assert side_for(prompts, 480, 854, Settings()) == balanced


def test_what_points_show_may_be_anything():
    points = Prompt(1, 0, points=np.array([[5.0, 5.0]]))
    assert side_for([points], 480, 854, SETTINGS) == 448


def test_a_corrected_object_is_followed_as_finely_as_a_right_one():
    small, large = (400, 200, 500, 300), (0, 0, 854, 480)
    wrong, right = Prompt(1, 0, box=large), Prompt(1, 4, box=small)
    click = Prompt(1, 6, points=np.array([[450.0, 250.0]]))
    for prompts in ([right], [wrong, right], [wrong, right, click]):
        assert side_for(prompts, 480, 854, Settings()) == 896
    union = [right, Prompt(1, 4, box=large)]
    assert side_for(union, 480, 854, Settings()) == 768
    assert side_for([right, Prompt(2, 9, box=large)], 480, 854, Settings()) == 768
