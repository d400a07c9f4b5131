"""Requests to the server."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

QUESTION = "Describe the masked region in detail."


def png(rgba: np.ndarray) -> str:
    """Returns pixels as a data URL."""
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_part(url: str) -> dict:
    """Returns the part of a message that shows an image."""
    return {"type": "image_url", "image_url": {"url": url}}


def rgba(seed: int = 0, size: int = 64) -> np.ndarray:
    """Returns noise with a mask in its alpha channel."""
    image = np.random.default_rng(seed).integers(0, 255, (size, size, 4), np.uint8)
    image[..., 3] = 0
    image[10:40, 10 + seed % 20 : 50, 3] = 255
    return image


def question(*urls: str, text: str = QUESTION) -> list[dict]:
    """Returns messages that ask about images."""
    parts = [image_part(url) for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
