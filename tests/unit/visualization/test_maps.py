from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.visualization import maps


@pytest.mark.parametrize("count", [2, 12, 200])
def test_all_that_are_alike_are_duplicates_of_the_first(count, monkeypatch):
    monkeypatch.setattr(maps, "_CHUNK", 64)
    vectors = np.zeros((count + 1, 4), np.float32)
    vectors[:, 0] = 1
    vectors[1] = [0, 1, 0, 0]
    near, first = maps._compared(vectors, 0.95)
    assert first.tolist() == [0, 1] + [0] * (count - 1)
    assert np.argmin(near) == 1


def test_a_chain_has_the_first_of_it():
    angles = np.radians([0, 10, 20, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert maps._compared(vectors, np.cos(np.radians(11)))[1].tolist() == [0, 0, 0, 3]
