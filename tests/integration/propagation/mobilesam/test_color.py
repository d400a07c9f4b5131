"""Histograms of cells, on plain colors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.propagation.mobilesam.color import (
    cell_colors,
    color_agreement,
)
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid

CPU = torch.device("cpu")
SILVER, SHADED, RED, BLUE = (
    (190, 192, 195),
    (150, 152, 155),
    (200, 40, 20),
    (20, 40, 200),
)


def plain(color, height=32, width=48):
    return np.full((height, width, 3), color, dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(480, 854, 768), (240, 432, 512), (1080, 607, 768), (33, 1000, 256), (2, 3, 64)],
)
def test_each_cell_has_a_histogram(height, width, side):
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    grid = Grid(height, width, side)
    colors = cell_colors(frame, grid, CPU)
    assert colors.shape == (45, *grid.cells)
    lengths = colors.square().sum(dim=0)
    assert torch.allclose(lengths, torch.ones(grid.cells), atol=1e-4)


@pytest.mark.parametrize(
    ("then", "now", "least", "most"),
    [
        (SILVER, SILVER, 0.999, 1.001),
        (SILVER, SHADED, 0.6, 0.95),
        (SILVER, RED, 0.0, 0.4),
        (BLUE, RED, 0.0, 0.1),
    ],
)
def test_other_colors_agree_less(then, now, least, most):
    grid = Grid(32, 48, 48)
    share = torch.ones(grid.cells)
    old, new = (cell_colors(plain(c), grid, CPU) for c in (then, now))
    assert least <= color_agreement(new, share, [(old, share)]) <= most


def test_the_most_alike_of_the_remembered_counts():
    grid = Grid(32, 48, 48)
    share = torch.ones(grid.cells)
    red, blue = (cell_colors(plain(c), grid, CPU) for c in (RED, BLUE))
    both = color_agreement(red, share, [(blue, share), (red, share)])
    assert both == pytest.approx(1.0, abs=1e-4)


def test_only_the_objects_cells_count():
    grid = Grid(32, 48, 48)
    frame = plain(RED)
    frame[:, 16:] = BLUE
    colors = cell_colors(frame, grid, CPU)
    share = torch.zeros(grid.cells)
    share[:, 0] = 1
    red = cell_colors(plain(RED), grid, CPU)
    everywhere = torch.ones(grid.cells)
    assert color_agreement(colors, share, [(red, everywhere)]) > 0.99
    assert color_agreement(colors, 1 - share, [(red, everywhere)]) < 0.1
    assert color_agreement(colors, 0 * share, [(red, everywhere)]) == 0


@given(st.tuples(*[st.integers(0, 255)] * 3), st.tuples(*[st.integers(0, 255)] * 3))
def test_agreement_is_symmetric_and_a_share(one, other):
    grid = Grid(16, 16, 16)
    share = torch.ones(grid.cells)
    a, b = (cell_colors(plain(c, 16, 16), grid, CPU) for c in (one, other))
    there = color_agreement(a, share, [(b, share)])
    assert 0 <= there <= 1 + 1e-5
    assert there == pytest.approx(color_agreement(b, share, [(a, share)]), abs=1e-5)
