"""Features of cells and what is carried by their likeness."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.propagation.mobilesam.matching import (
    Describer,
    carry,
    offsets_squared,
)
from fiftyone_regioncap.propagation.mobilesam.segmenter import Encoding, Grid

GRID = Grid(96, 128, 128)
AMONG = {"neighbors": 2, "temperature": 0.01}


def encoding(seed, rows=6, columns=8):
    generator = torch.Generator().manual_seed(seed)
    return Encoding(
        torch.randn(256, rows, columns, generator=generator),
        torch.randn(160, rows, columns, generator=generator),
        GRID.whole,
    )


def test_a_cell_is_most_like_itself():
    features = Describer(32).describe(encoding(0), GRID)
    alike = features @ features.T
    assert features.shape == (48, 32)
    assert torch.allclose(alike.diag(), torch.ones(48), atol=1e-5)
    assert torch.equal(alike.argmax(dim=1), torch.arange(48))


def test_components_keep_the_likeness_of_all_features():
    one = encoding(0)
    parts = [part.flatten(1).T for part in (one.embedding, one.stage)]
    parts = [part - part.mean(dim=0) for part in parts]
    whole = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], dim=1)
    features = Describer(47).describe(one, GRID)  # all that 48 centered cells can span
    assert torch.allclose(features @ features.T, whole @ whole.T / 2, atol=0.05)


def test_a_restored_describer_goes_on_as_before():
    one, other = Describer(16), Describer(16)
    one.describe(encoding(0), GRID)
    other.restore(one.state())
    assert torch.equal(
        one.describe(encoding(1), GRID), other.describe(encoding(1), GRID)
    )
    assert Describer(16).state() == {}


@given(
    st.integers(0, 34),
    st.tuples(st.integers(-4, 4), st.integers(-6, 6)),
)
def test_distances_are_from_where_the_object_went(cell, shift):
    rows, columns = 5, 7
    far = offsets_squared(torch.tensor([cell]), columns, rows, shift)
    assert far.shape == (1, rows * columns)
    for other in range(rows * columns):
        y = cell // columns - other // columns - shift[0]
        x = cell % columns - other % columns - shift[1]
        assert far[0, other] == y * y + x * x


@pytest.mark.parametrize(
    ("similarities", "expected"),
    [
        ([[0.9, 0.1, 0.1]], [1.0, 0.0]),
        ([[0.1, 0.9, 0.1]], [0.0, 1.0]),
        ([[0.8, 0.8, 0.1]], [0.5, 0.5]),
    ],
    ids=["first", "second", "both alike"],
)
def test_labels_of_the_best_matches_are_carried(similarities, expected):
    labels = [torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])]
    carried = carry([torch.tensor(similarities)], labels, **AMONG)
    assert torch.allclose(carried, torch.tensor([expected]), atol=1e-4)


def test_all_remembered_frames_vote():
    near, far = torch.tensor([[0.9]]), torch.tensor([[0.2]])
    labels = [torch.tensor([[0.0]]), torch.tensor([[1.0]])]
    assert float(carry([far, near], labels, **AMONG)) == pytest.approx(1, abs=1e-4)
    assert float(carry([near, far], labels, **AMONG)) == pytest.approx(0, abs=1e-4)
