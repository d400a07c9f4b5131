"""Provides real weights, real clips, and small videos in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.propagation.mobilesam.segmenter import MobileSam
from fiftyone_regioncap.system import assets


@dataclass(frozen=True)
class Clip:
    """Frames and object numbers, in memory."""

    frames: Sequence[Frame]
    masks: Sequence[NDArray[np.uint8]]

    @property
    def height(self) -> int:
        return self.frames[0].shape[0]

    @property
    def width(self) -> int:
        return self.frames[0].shape[1]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Frame:
        return self.frames[index]


@pytest.fixture(scope="session")
def mobile_sam_weights() -> Path:
    """The published ``mobile_sam.pt``."""
    given = Path(os.environ.get("REGIONCAP_WEIGHTS", "")) / "mobile_sam.pt"
    found = given if given.is_file() else assets.find("mobile_sam.pt")
    if found is None:
        pytest.skip("no mobile_sam.pt; set REGIONCAP_WEIGHTS to its folder")
    return found


@pytest.fixture(scope="session")
def mobile_sam(mobile_sam_weights: Path) -> MobileSam:
    return MobileSam.from_pretrained(mobile_sam_weights, "cpu")


@pytest.fixture(scope="session")
def clip_of(clips: Path) -> Callable[[str, int], Clip]:
    """Reads the first frames of a clip of the shared folder."""

    def read(name: str, count: int) -> Clip:
        folder = clips / name
        if not folder.is_dir():
            pytest.skip(f"no clip {name}")
        frames = sorted((folder / "frames").iterdir())[:count]
        masks = sorted((folder / "masks").iterdir())[:count]
        return Clip(
            [np.array(Image.open(file).convert("RGB")) for file in frames],
            [np.array(Image.open(file)) for file in masks],
        )

    return read


@pytest.fixture(scope="session")
def squares() -> Clip:
    """Makes a video of two textured squares that move apart, 120 x 90, 8 frames."""
    generator = np.random.default_rng(0)
    ground = generator.integers(0, 90, (90, 120, 3), dtype=np.uint8)
    red = generator.integers(0, 60, (24, 24, 3), dtype=np.uint8)
    red[..., 0] += 190
    blue = generator.integers(0, 60, (24, 24, 3), dtype=np.uint8)
    blue[..., 2] += 190
    frames, masks = [], []
    for step in range(8):
        frame, mask = ground.copy(), np.zeros((90, 120), dtype=np.uint8)
        for number, patch, x, y in ((1, red, 40 - 3 * step, 20), (2, blue, 60, 50)):
            frame[y : y + 24, x : x + 24] = patch
            mask[y : y + 24, x : x + 24] = number
        frames.append(frame)
        masks.append(mask)
    return Clip(frames, masks)
