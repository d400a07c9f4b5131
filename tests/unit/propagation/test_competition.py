"""Pixels go to one object each; crumbs go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fiftyone_regioncap.propagation.competition import compete, drop_fragments


@given(
    npst.arrays(
        np.float32, (3, 4, 5), elements=st.floats(-5, 5, width=32, allow_nan=False)
    )
)
def test_each_claimed_pixel_goes_to_one_of_its_strongest(claims):
    masks = compete(claims)
    assert (masks.sum(axis=0) == (claims > 0).any(axis=0)).all()
    assert (
        claims[masks] == np.broadcast_to(claims.max(axis=0), claims.shape)[masks]
    ).all()


@pytest.mark.parametrize(
    ("sizes", "share", "kept"),
    [
        ([10], 0.5, [10]),  # one part stays
        ([10, 4], 0.5, [10]),  # a crumb goes
        ([10, 5], 0.5, [10, 5]),  # exactly the share stays
        ([], 0.5, []),  # nothing stays nothing
    ],
)
def test_fragments(sizes, share, kept):
    mask = np.zeros((8, 12), dtype=bool)
    for row, size in enumerate(sizes):
        mask[3 * row, :size] = True
    left = drop_fragments(mask, share)
    assert [int(n) for n in left.sum(axis=1) if n] == kept
    assert not (left & ~mask).any()
