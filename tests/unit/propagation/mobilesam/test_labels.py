"""Sub-cell labels, from masks and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.evaluation.masks import region_similarity
from fiftyone_regioncap.propagation.mobilesam.labels import (
    enlarge_to_frame,
    from_blocks,
    shrink,
    to_blocks,
)
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid


def drawn(height, width, rows, columns):
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "least"),
    [
        (drawn(480, 854, slice(100, 300), slice(200, 500)), 0.97),
        (drawn(480, 854, slice(100, 110), slice(200, 500)), 0.6),
        (drawn(480, 854, slice(100, 102), slice(200, 500)), 0.3),
        (drawn(480, 854, slice(100, 106), slice(200, 206)), 0.4),
        (drawn(480, 854, slice(479, 480), slice(853, 854)), 0.02),
        (drawn(2160, 3840, slice(100, 101), slice(200, 201)), 0.0),
    ],
    ids=["large", "thin", "thinner than a label", "small", "a pixel", "a pixel in 4K"],
)
def test_what_is_thin_or_small_is_kept(mask, least):
    grid = Grid(*mask.shape, 768)
    shares = shrink(mask, grid)
    assert shares.shape == (grid.cells[0] * 4, grid.cells[1] * 4)
    assert shares.min() >= 0
    assert 0.5 < shares.max() <= 1
    back = enlarge_to_frame(shares, grid) > 0.4
    assert region_similarity(back, mask) >= least


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 300), st.integers(8, 300), st.sampled_from([64, 256]), st.data())
def test_blocks_hold_what_was_put_in(height, width, side, data):
    grid = Grid(height, width, side)
    seed = data.draw(st.integers(0, 9))
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    shares = shrink(mask, grid)
    blocks = to_blocks(shares)
    assert blocks.shape == (grid.cells[0] * grid.cells[1], 16)
    back = from_blocks(blocks.float() / 255, grid).numpy()
    assert np.abs(back - shares).max() <= 0.5 / 255 + 1e-6
