"""Likeness of cells and what is carried by it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fiftyone_regioncap.propagation.mobilesam.matching import (
    carry,
    cell_features,
    similarity,
)


def features(embedding, colors):
    """One row of cells with these embeddings and colors, one-hot."""
    encoded = F.one_hot(torch.tensor([embedding]), 256).permute(2, 0, 1).float()
    colored = F.one_hot(torch.tensor([colors]), 45).permute(2, 0, 1).float()
    return cell_features(encoded, torch.zeros(256), colored)


@pytest.mark.parametrize("color", [0.0, 0.4, 1.0])
def test_embeddings_and_colors_share_the_likeness(color):
    one = features([1, 2], [5, 6])
    other = features([1, 1, 9], [5, 7, 6])
    expected = [[1.0, 1 - color, 0.0], [0.0, 0.0, color]]
    assert torch.allclose(similarity(one, other, color), torch.tensor(expected))


def test_colors_decide_between_cells_that_are_alike():
    new = features([3, 3], [5, 6])
    old = features([3, 3], [6, 5])
    labels = torch.tensor([[[1.0, 0.0]]])
    carried = carry(
        [similarity(new, old, 0.4)], [labels], neighbors=2, temperature=0.01
    )
    assert torch.allclose(carried, torch.tensor([[[0.0, 1.0]]]), atol=1e-4)
