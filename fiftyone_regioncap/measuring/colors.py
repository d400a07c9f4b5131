"""Names of colors by perceptual distance.

The names are the eleven basic color terms of English (Berlin & Kay, 1969) and beige
and teal. Each is given by several examples, dark and light, because a name covers a
region of colors, not a point; a pixel gets the name of the example nearest to it in
CIELAB (D65), where lightness counts half: shadow changes it more than the name.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame, Mask, Scored

EXAMPLES: dict[str, tuple[str, ...]] = {
    "black": ("000000", "1a1a1a", "241f1c", "1c2026"),
    "gray": ("3c3c3c", "555555", "6e6e6e", "888888", "a0a0a0", "5a6068", "8a9098"),
    "white": ("c8c8c8", "e0e0e0", "ffffff", "f5f0e6", "dce4ec"),
    "red": ("ff0000", "c81e1e", "8b0000", "e04038", "5c0a0a"),
    "orange": ("ff8c00", "ff6a1a", "e07b28", "c85a10", "ffa850"),
    "yellow": ("ffff00", "ffd700", "e6c832", "fff08c", "b8a010"),
    "green": ("00ff00", "008000", "2e8b57", "6b8e23", "90ee90", "1e3c1e", "4a5a28"),
    "teal": ("008080", "20b2aa", "40e0d0", "00ffff", "0a4a4a"),
    "blue": ("0000ff", "1e5adc", "4682b4", "87ceeb", "102060", "000050", "3c5a8c"),
    "purple": ("800080", "7b3fb0", "9370db", "4b1e6e", "b48cd8"),
    "pink": ("ffc0cb", "ff69b4", "ff00ff", "e88ca0", "d85a8c"),
    "brown": ("8b4513", "6b4226", "4a2c14", "a0703c", "7a5c40", "5c3a28"),
    "beige": ("f5deb3", "d2b48c", "c8b496", "e6d2b4"),
}
"""Examples of each color name, sRGB in hexadecimal."""

_LIGHTNESS_WEIGHT = 0.5
_PIXELS_PER_FRAME = 1500

_NAMES = tuple(name for name, codes in EXAMPLES.items() for _ in codes)


def _lab(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Converts sRGB (N, 3) to CIELAB with lightness weighted, float32 (N, 3)."""
    image = pixels.reshape(-1, 1, 3).astype(np.float32) / 255
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    return lab * np.array([_LIGHTNESS_WEIGHT, 1, 1], np.float32)


_EXAMPLES_LAB = _lab(
    np.array(
        [list(bytes.fromhex(code)) for codes in EXAMPLES.values() for code in codes],
        np.uint8,
    )
)


def name_pixels(pixels: NDArray[np.uint8]) -> list[str]:
    """Names the color of each pixel.

    Args:
        pixels: Colors of the pixels, sRGB, uint8 (N, 3).
    """
    if len(pixels) == 0:
        return []
    distances = np.linalg.norm(_lab(pixels)[:, None] - _EXAMPLES_LAB, axis=2)
    return [_NAMES[nearest] for nearest in distances.argmin(axis=1)]


def color_shares(frames: Sequence[Frame], masks: Sequence[Mask]) -> tuple[Scored, ...]:
    """Computes the shares of color names in a region.

    The rim of each mask is left out, where object and background mix.

    Args:
        frames: T images, each uint8 (H, W, 3) RGB.
        masks: T masks of the region, each bool (H, W); empty ones are skipped.

    Returns:
        (name, share of the region's pixels), the largest share first; empty if all
        masks are.
    """
    names: list[str] = []
    for frame, mask in zip(frames, masks, strict=True):
        inner = cv2.erode(
            mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2
        ).astype(bool)
        pixels = frame[inner if inner.any() else mask]
        step = max(len(pixels) // _PIXELS_PER_FRAME, 1)
        names.extend(name_pixels(pixels[::step]))
    found, counts = np.unique(np.array(names, dtype=object), return_counts=True)
    shares = zip(found.tolist(), (counts / max(len(names), 1)).tolist(), strict=True)
    return tuple(sorted(shares, key=lambda share: (-share[1], share[0])))
