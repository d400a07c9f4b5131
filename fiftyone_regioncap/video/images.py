"""Reads images upright, as 8-bit RGB."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageOps

from fiftyone_regioncap.core.types import Frame

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of the files that count as frames, in lower case."""


def load_image(path: str | os.PathLike[str]) -> Frame:
    """Reads an image, uint8 (H, W, 3) RGB.

    Raises:
        OSError: When it is missing, no image, or has more pixels than Pillow allows;
            also ``SyntaxError`` and ``ValueError`` for damaged files.
    """
    try:
        with Image.open(path) as image:
            return rgb_of(image)
    except Image.DecompressionBombError as error:
        raise OSError(
            f"{error} Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error


def rgb_of(image: Image.Image) -> Frame:
    """Converts an image to uint8 (H, W, 3) RGB, turned as its EXIF data says.

    Gray images of 16 bits are scaled to 8; Pillow would clip them to white.
    """
    upright = ImageOps.exif_transpose(image)
    if not upright.mode.startswith("I"):
        return np.array(upright.convert("RGB"))
    values = np.asarray(upright).astype(np.int64)
    gray = np.clip((values + 128) // 257, 0, 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)
