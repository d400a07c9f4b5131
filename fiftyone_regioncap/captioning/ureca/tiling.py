"""Tiling of images and masks as InternVL and URECA do it.

The rules are those of the authors' code, its accidents included, because the weights
were trained with them.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fiftyone_regioncap.core.types import Frame, Mask

MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet, by RGB channel, subtracted from values in [0, 1]."""

STD = (0.229, 0.224, 0.225)
"""Of ImageNet, by RGB channel, divided by after that."""


@lru_cache(maxsize=64)
def _candidates(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Returns all grids of at most so many tiles as columns and rows, small first."""
    sides = range(1, max_tiles + 1)
    grids = [(c, r) for c in sides for r in sides if c * r <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def tile_grid(width: int, height: int, max_tiles: int, tile: int) -> tuple[int, int]:
    """Returns the tile grid that distorts an image least.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        max_tiles: Maximum number of tiles.
        tile: Side of a tile in pixels.

    Returns:
        Columns and rows.
    """
    aspect, area = width / height, width * height
    best, least = (1, 1), float("inf")
    for columns, rows in _candidates(max_tiles):
        distortion = abs(aspect - columns / rows)
        if distortion < least:
            best, least = (columns, rows), distortion
        elif distortion == least and area > 0.5 * tile * tile * columns * rows:
            best = (columns, rows)
    return best


def image_tiles(
    frame: Frame, *, max_tiles: int, tile: int, thumbnail: bool = True
) -> NDArray[np.uint8]:
    """Cuts an image into tiles, row by row, the whole image last.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        max_tiles: Maximum number of tiles, the thumbnail not counted.
        tile: Side of a tile in pixels.
        thumbnail: Whether several tiles are followed by a thumbnail of the whole image.

    Returns:
        uint8 (T, tile, tile, 3).
    """
    picture = Image.fromarray(np.ascontiguousarray(frame))
    grid = tile_grid(picture.width, picture.height, max_tiles, tile)
    whole = np.asarray(_fitted(picture, grid, tile, Image.Resampling.BICUBIC))
    tiles = _cut(whole, grid)
    if thumbnail and len(tiles) > 1:
        small = _fitted(picture, (1, 1), tile, Image.Resampling.BICUBIC)
        tiles = np.concatenate([tiles, np.asarray(small)[None]])
    return tiles


def mask_tiles(
    mask: Mask, *, max_tiles: int, tile: int, thumbnail: bool = True
) -> NDArray[np.uint8]:
    """Cuts a mask into the tiles of its image, with values from 0 to 255.

    The thumbnail is resized with a filter that overshoots, and what is below 0 or above
    255 wraps around, as it does in the authors' code on x86.

    Args:
        mask: Object mask, (H, W); values other than 0 belong to the region.
        max_tiles: Maximum number of tiles, the same as for the image.
        tile: Side of a tile in pixels.
        thumbnail: Whether a thumbnail is added, the same as for the image.

    Returns:
        uint8 (T, tile, tile).
    """
    values = np.where(mask, 255, 0)
    sharp = Image.fromarray(values.astype(np.uint8))
    grid = tile_grid(sharp.width, sharp.height, max_tiles, tile)
    tiles = _cut(np.asarray(_fitted(sharp, grid, tile, Image.Resampling.NEAREST)), grid)
    if thumbnail and len(tiles) > 1:
        smooth = Image.fromarray(values.astype(np.float32))
        small = np.asarray(_fitted(smooth, (1, 1), tile, Image.Resampling.BICUBIC))
        wrapped = (np.trunc(small).astype(np.int32) & 255).astype(np.uint8)
        tiles = np.concatenate([tiles, wrapped[None]])
    return tiles


def static_mask(mask: Mask, tile: int) -> NDArray[np.uint8]:
    """Resizes a mask to one tile with values 0 and 1.

    Args:
        mask: Object mask, (H, W); values other than 0 belong to the region.
        tile: Side of a tile in pixels.

    Returns:
        uint8 (1, tile, tile).
    """
    plain = np.ascontiguousarray(np.asarray(mask) != 0).astype(np.uint8)
    return cv2.resize(plain, (tile, tile), interpolation=cv2.INTER_NEAREST)[None]


def normalize(tiles: Tensor) -> Tensor:
    """Normalizes tiles for the vision tower.

    Args:
        tiles: Tiles to normalize, uint8 (T, tile, tile, 3).

    Returns:
        float32 (T, 3, tile, tile).
    """
    pixels = tiles.permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(values, device=tiles.device)[:, None, None]
        for values in (MEAN, STD)
    )
    return (pixels - mean) / std


def _fitted(
    picture: Image.Image, grid: tuple[int, int], tile: int, how: Image.Resampling
) -> Image.Image:
    columns, rows = grid
    return picture.resize((columns * tile, rows * tile), how)


def _cut(whole: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.uint8]:
    columns, rows = grid
    parts = [
        part for row in np.split(whole, rows) for part in np.split(row, columns, 1)
    ]
    return np.stack(parts)
