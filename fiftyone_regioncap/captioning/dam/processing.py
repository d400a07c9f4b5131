"""Preprocessing: from an image and a mask to the two views that DAM takes.

The full view is the whole image, the crop view a window around the mask three times its
size; each comes with its mask as a fourth channel. Resizing is Pillow's 8-bit bicubic,
as in the authors' code: other resamplers move the logits visibly.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap.captioning.dam.config import ImageConfig
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Mask, box_of_mask

MINIMUM_SIDE = 48
"""The focal crop takes objects as at least this big, in pixels of the image."""

Views: TypeAlias = NDArray[np.uint8]
"""Full RGB, full mask, crop RGB, crop mask: uint8 (8, S, S)."""


class Window(NamedTuple):
    """Bounds of the image part that the crop view shows, in pixels, end exclusive."""

    x1: int
    y1: int
    x2: int
    y2: int


FOCAL = 3.0
"""Sides of the focal crop in sides of the object, as the published models take it."""


def crop_window(mask: Mask, focal: float = FOCAL) -> Window:
    """Returns the window of the focal crop: three times the object, cut at the image.

    Args:
        mask: Object mask, bool (H, W).
        focal: Sides of the window in sides of the object's box, at least 1.

    Raises:
        PromptError: When the mask is empty.
    """
    box = box_of_mask(mask)
    if box is None:
        raise PromptError("the mask is empty; mark the object on it")
    height, width = mask.shape
    left, top, right, bottom = (int(edge) for edge in box)
    w, h = max(right - left, MINIMUM_SIDE), max(bottom - top, MINIMUM_SIDE)
    # int() truncates toward zero, which differs from floor for objects at the left and
    # upper edges; the published model was trained so.
    x = int(left + (right - left) / 2 - w / 2)
    y = int(top + (bottom - top) / 2 - h / 2)
    dx, dy = int((focal - 1) / 2 * w), int((focal - 1) / 2 * h)
    return Window(
        max(x - dx, 0),
        max(y - dy, 0),
        min(x + w + dx, width),
        min(y + h + dy, height),
    )


class FullViews:
    """A cache of the full views of the last frames, for all objects on them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = Lock()
        # The frame is kept with its view so that its id stays its own.
        self._views: OrderedDict[int, tuple[object, NDArray[np.uint8]]] = OrderedDict()

    def get(self, frame: object) -> NDArray[np.uint8] | None:
        """Returns the view of this very frame object, or None."""
        with self._lock:
            entry = self._views.get(id(frame))
            if entry is None:
                return None
            self._views.move_to_end(id(frame))
            return entry[1]

    def put(self, frame: object, view: NDArray[np.uint8]) -> None:
        """Stores a view and drops the least recently used one."""
        with self._lock:
            self._views[id(frame)] = (frame, view)
            while len(self._views) > self._capacity:
                self._views.popitem(last=False)


class Processor:
    """Turns images and masks into views.

    Args:
        config: Image preprocessing of the checkpoint.
    """

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self.table = _table(config)
        # Masks are padded with the images' gray too: the authors' code pads them last.
        self._grey = tuple(int(mean * 255) for mean in config.mean)

    def views(
        self,
        image: NDArray[np.uint8] | Image.Image,
        mask: NDArray[np.generic] | Image.Image,
        cache: FullViews | None = None,
        focal: float = FOCAL,
    ) -> tuple[Views, Window]:
        """Makes both views of one object.

        Args:
            image: RGB image, uint8 (H, W, 3); gray (H, W), RGBA (H, W, 4), or a Pillow
                image of any mode. Alpha is dropped after resizing and palettes are
                resized without interpolation, as in the authors' code.
            mask: Object mask, (H, W); values above 0 belong to the object.
            cache: Cache of full views, used when several objects are on the same
                frames.
            focal: Sides of the crop view in sides of the object's box.

        Returns:
            uint8 (8, S, S) and the window that the crop view shows.

        Raises:
            PromptError: When the mask is empty, not 2-D, or of another size.
        """
        picture = image if isinstance(image, Image.Image) else _picture(image)
        marked = np.asarray(mask)
        if marked.ndim != 2:
            raise PromptError(
                f"the mask has shape {marked.shape}; give one of (height, width)"
            )
        marked = marked > 0
        if (picture.height, picture.width) != marked.shape:
            raise PromptError(
                f"the mask is {marked.shape[1]}x{marked.shape[0]}, the image "
                f"{picture.width}x{picture.height}; give a mask of the image's size"
            )
        window = crop_window(marked, focal)
        full = cache.get(image) if cache else None
        if full is None:
            full = self._image(picture)
            if cache:
                cache.put(image, full)
        stencil = Image.fromarray(marked.astype(np.uint8) * np.uint8(255))
        size = self._config.size
        views = np.empty((8, size, size), dtype=np.uint8)
        views[:3] = full
        views[3] = self._mask(stencil)
        if window == (0, 0, picture.width, picture.height) and picture.mode == "RGB":
            views[4:] = views[:4]
        else:
            views[4:7] = self._image(picture.convert("RGB").crop(window))
            views[7] = self._mask(stencil.crop(window))
        return views, window

    def normalize(self, views: Views) -> NDArray[np.float32]:
        """Normalizes 8-bit views: float32 of the same shape."""
        channels = np.array([0, 1, 2, 0, 0, 1, 2, 0])[:, None, None]
        return self.table[channels, views]

    def _image(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Resizes in the image's own mode, then makes it RGB: uint8 (3, S, S)."""
        if self._config.pad:
            picture = _squared(picture.convert("RGB"), self._grey)
        resized = self._resize(picture).convert("RGB")
        return np.asarray(resized).transpose(2, 0, 1)

    def _mask(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Resizes a mask of 0 and 255 with soft edges: uint8 (S, S)."""
        if self._config.pad:
            picture = _squared(picture, self._grey[0])
        return np.asarray(self._resize(picture))

    def _resize(self, picture: Image.Image) -> Image.Image:
        size = self._config.size
        return picture.resize((size, size), Image.Resampling(self._config.resample))


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    if image.dtype != np.uint8 or not (
        image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    ):
        raise PromptError(
            f"the image is {image.dtype} {image.shape}; "
            "give uint8 (height, width, 3) RGB"
        )
    return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)


def _squared(picture: Image.Image, grey: int | tuple[int, ...]) -> Image.Image:
    side = max(picture.size)
    square = Image.new(picture.mode, (side, side), grey)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _table(config: ImageConfig) -> NDArray[np.float32]:
    """Returns the normalized value of each 8-bit value, float32 (3, 256) by channel.

    Scaling in float64 and normalizing in float32 gives the authors' numbers to the bit.
    """
    scaled = (np.arange(256) * config.scale).astype(np.float32)
    mean = np.asarray(config.mean, dtype=np.float32)[:, None]
    std = np.asarray(config.std, dtype=np.float32)[:, None]
    return ((scaled - mean) / std).astype(np.float32)
