from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap.video.images import load_image


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(
    ("values", "kind"), [([0, 128, 255], np.uint8), ([0, 32896, 65535], np.uint16)]
)
def test_gray_images_keep_their_shades(
    tmp_path: Path, suffix: str, values: list[int], kind: type
) -> None:
    path = tmp_path / f"gray.{suffix}"
    Image.fromarray(np.array([values], dtype=kind)).save(path)
    assert load_image(path).tolist() == [[[v] * 3 for v in (0, 128, 255)]]
