from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.propagation.sam2 import masks as masks_module
from fiftyone_regioncap.propagation.sam2.masks import fill_holes, masks_of, pack_bits


def noise(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 6, 7, generator=generator)
    return F.interpolate(coarse, size=(32, 32), mode="bicubic")[:, 0]


def holes_by_opencv(logits: np.ndarray, max_area: int) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        (logits <= 0).astype(np.uint8), connectivity=8
    )
    small = stats[:, cv2.CC_STAT_AREA] <= max_area
    small[0] = False
    return small[labels]


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    max_area=st.integers(1, 12),
    density=st.floats(0.05, 0.7),
)
def test_holes_are_the_small_connected_parts(seed, max_area, density):
    random = np.random.default_rng(seed)
    logits = np.where(random.random((2, 14, 17)) < density, -1.0, 2.0)
    filled = fill_holes(torch.from_numpy(logits).float(), max_area).numpy()
    for before, after in zip(logits, filled, strict=True):
        holes = holes_by_opencv(before, max_area)
        np.testing.assert_allclose(after, np.where(holes, 0.1, before))


@given(seed=st.integers(0, 1000), rows=st.integers(1, 3), width=st.integers(1, 40))
def test_bits_are_packed_as_numpy_does(seed, rows, width):
    bits = np.random.default_rng(seed).random((rows, width)) < 0.5
    packed = pack_bits(torch.from_numpy(bits)).numpy()
    np.testing.assert_array_equal(packed, np.packbits(bits, axis=1))


@pytest.mark.parametrize("pixels", [1, 90 * 140 * 2, 1 << 25])  # batches of 1, 2, all
def test_masks_are_thresholded_logits(pixels, monkeypatch):
    monkeypatch.setattr(masks_module, "BATCH_PIXELS", pixels)
    logits = noise(5)
    large = F.interpolate(logits[:, None], size=(90, 140), mode="bilinear")[:, 0]
    shared = masks_of(logits, 90, 140, overlap=True)
    apart = masks_of(logits, 90, 140, overlap=False)
    owner = large.argmax(dim=0)
    for index in range(5):
        expected = (large[index] > 0).numpy()
        np.testing.assert_array_equal(shared[index], expected)
        owned = expected & (owner == index).numpy()
        np.testing.assert_array_equal(apart[index], owned)


def test_objects_without_a_pixel_have_no_mask():
    logits = noise(3)
    logits[1] = -1024.0
    logits[2] = logits[0] - 1e-3  # always just under the first object
    found = masks_of(logits, 50, 60, overlap=False)
    assert found[0] is not None and found[0].any()
    assert found[1] is None
    assert found[2] is None


def test_holes_are_filled_when_asked():
    logits = torch.full((1, 16, 16), 3.0)
    logits[0, 4:6, 4:6] = -3.0
    open_, closed = (
        masks_of(logits, 16, 16, overlap=True, fill_hole_area=area)[0]
        for area in (3, 4)
    )
    assert open_ is not None and closed is not None
    assert open_.sum() == 252
    assert closed.all()
