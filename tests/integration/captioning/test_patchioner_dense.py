from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.captioning.patchioner.aggregation import Grid, mask_coverage
from fiftyone_regioncap.captioning.patchioner.dense import (
    caption_everything,
    clusters,
    heatmap,
    patch_mask,
    similarity_map,
)
from fiftyone_regioncap.captioning.patchioner.language import Description
from fiftyone_regioncap.captioning.patchioner.model import Patchioner
from fiftyone_regioncap.captioning.patchioner.vision import FrameFeatures
from fiftyone_regioncap.core.errors import PromptError, WeightsError

GRID = Grid(6, 6, 14, 60, 120)
KINDS = torch.eye(3)


def scene(grid: Grid = GRID) -> FrameFeatures:
    """A left half of one kind, a right half of another, and one patch of a third."""
    patches = KINDS[0].repeat(6, 6, 1)
    patches[:, 3:] = KINDS[1]
    patches[0, 0] = KINDS[2]
    noise = torch.rand(6, 6, 3, generator=torch.Generator().manual_seed(0)) * 0.02
    return FrameFeatures(grid, ((patches + noise) * 7).flatten(0, 1))


class Naming:
    """A language part that names the kind of patch it is shown."""

    width = 3

    def describe(self, embeddings: torch.Tensor) -> list[Description]:
        names = ("grass", "sky", "bird")
        return [Description(names[int(row.argmax())]) for row in embeddings]


class Seeing:
    width, name, device = 3, "scene", torch.device("cpu")

    def encode(self, frames: object) -> list[FrameFeatures]:
        return [scene()]


MODEL = Patchioner(Seeing(), Naming())


def test_similarity() -> None:
    found = similarity_map(scene(), KINDS[1].numpy())
    assert (found[:, 3:] > 0.99).all() and (found[:, :3] < 0.1).all()
    with pytest.raises(PromptError, match="patches have 3 channels"):
        similarity_map(scene(), np.ones(4, np.float32))


def test_heatmap_is_at_the_frame_s_size() -> None:
    full = heatmap(scene(), KINDS[1].numpy())
    assert full.shape == (60, 120) and full.dtype == np.float32
    assert (full[:, 75:] > 0.99).all() and (full[:, 20:45] < 0.1).all()
    cropped = heatmap(scene(Grid(6, 6, 14, 60, 120, crop=True)), KINDS[1].numpy())
    assert np.isnan(cropped[:, :30]).all() and np.isnan(cropped[:, 90:]).all()
    assert not np.isnan(cropped[:, 30:90]).any()


def test_clusters_follow_the_features() -> None:
    parts = clusters(scene(), 3, smallest=2)
    assert (parts[:, 3:] == 0).all()  # the largest first
    assert (parts[1:, :3] == 1).all() and parts[0, 0] == -1  # too small


def test_caption_everything() -> None:
    frame = np.zeros((60, 120, 3), np.uint8)
    found = caption_everything(MODEL, frame, count=3, smallest=1)
    assert [region.description.text for region in found] == ["sky", "grass", "bird"]
    assert found[0].box == (60, 0, 120, 60) and found[0].patches == 18
    total = np.sum([region.mask for region in found], axis=0)
    assert (total == 1).all()  # they part the frame
    boxed = np.zeros((60, 120), bool)
    boxed[:, 90:] = True
    (only,) = caption_everything(MODEL, scene(), proposals=[boxed])
    assert only.description.text == "sky" and only.mask is boxed
    assert caption_everything(MODEL, scene(), proposals=[]) == []
    with pytest.raises(PromptError, match="empty"):
        caption_everything(MODEL, scene(), proposals=[boxed & False])


@given(
    height=st.integers(24, 80),
    width=st.integers(24, 80),
    crop=st.booleans(),
    row=st.integers(0, 5),
    column=st.integers(0, 5),
)
def test_masks_of_patches_lie_on_their_patches(
    height: int, width: int, crop: bool, row: int, column: int
) -> None:
    grid = Grid(6, 6, 14, height, width, crop)
    patches = np.zeros((6, 6), dtype=bool)
    patches[row, column] = True
    mask = patch_mask(patches, grid)
    coverage = mask_coverage(mask, grid)
    assert np.unravel_index(coverage.argmax(), coverage.shape) == (row, column)


def test_parts_of_two_checkpoints() -> None:
    class Wider(Naming):
        width = 5

    with pytest.raises(WeightsError, match="gives 3 channels and the decoder reads 5"):
        Patchioner(Seeing(), Wider())
