"""Carrying soft masks from remembered frames to a new one by matching features.

Space-time label propagation as in A. Jabri et al., "Space-Time Correspondence as a
Contrastive Random Walk", NeurIPS 2020, over the embeddings of MobileSAM and the colors
of their cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid
from fiftyone_regioncap.propagation.mobilesam.tinyvit import CHANNELS, STRIDE


@dataclass(frozen=True)
class Memory:
    """A remembered frame.

    Attributes:
        features: float (301, rows, columns) of :func:`cell_features`.
        labels: by object id, float (rows, columns): the share of each cell that is the
            object's.
    """

    features: Tensor
    labels: Mapping[int, Tensor]


def cell_features(embedding: Tensor, mean: Tensor, colors: Tensor) -> Tensor:
    """What is remembered of each cell.

    Args:
        embedding: float (256, rows, columns).
        mean: float (256,), what all cells have in common.
        colors: float (45, rows, columns), unit length in each cell.

    Returns:
        float (301, rows, columns): the embedding without the mean, of unit length in
        each cell, and the colors.
    """
    centerd = F.normalize(embedding - mean[:, None, None], dim=0)
    return torch.cat([centerd, colors])


def similarity(features: Tensor, remembered: Tensor, color: float) -> Tensor:
    """How alike the cells of two frames are.

    Args:
        features: float (301, rows, columns) of :func:`cell_features`.
        remembered: the same of the other frame.
        color: how much the colors count, in [0, 1].

    Returns:
        float (cells, cells), the first frame's by the other's, in [-1, 1].
    """
    weights = features.new_full((len(features), 1, 1), color)
    weights[:CHANNELS] = 1 - color
    return (features * weights).flatten(1).T @ remembered.flatten(1)


def cell_shares(masks: Tensor, grid: Grid) -> Tensor:
    """The share of each cell of the embedding that each mask covers.

    Args:
        masks: float (N, H, W) in [0, 1] at the frame's size.
        grid: of the frame.

    Returns:
        float (N, rows, columns) in [0, 1].
    """
    rows, columns = grid.cells
    height, width = grid.content
    scaled = F.interpolate(masks[:, None], (height, width), mode="area")
    padded = F.pad(scaled, (0, columns * STRIDE - width, 0, rows * STRIDE - height))
    return F.avg_pool2d(padded, STRIDE)[:, 0]


def offset_penalty(
    rows: int, columns: int, radius: int, device: torch.device
) -> Tensor:
    """What to add to similarities so that only cells within a window match.

    Args:
        rows: of the embedding.
        columns: of the embedding.
        radius: largest distance in cells, along each axis.
        device: where the result shall be.

    Returns:
        float (rows * columns, rows * columns), 0 inside the window, -2 outside.
    """
    y = torch.arange(rows, device=device).repeat_interleave(columns)
    x = torch.arange(columns, device=device).repeat(rows)
    near = ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)
    return torch.where(near, 0.0, -2.0)


def carry(
    similarities: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    neighbors: int,
    temperature: float,
) -> Tensor:
    """Soft masks on a new frame from those on remembered frames.

    Args:
        similarities: of each remembered frame, float (cells, cells), new by remembered.
        labels: of each remembered frame, float (N, rows, columns), of the same objects.
        neighbors: matches counted for each cell.
        temperature: of the softmax over them.

    Returns:
        float (N, rows, columns) in [0, 1].
    """
    top, at = torch.cat(list(similarities), dim=1).topk(neighbors, dim=1, sorted=False)
    weights = (top / temperature).softmax(dim=1)
    remembered = torch.cat([label.flatten(1) for label in labels], dim=1)
    return (remembered[:, at] * weights).sum(dim=2).view_as(labels[0])


def likeness(
    similarities: Sequence[Tensor],
    labels: Sequence[Tensor],
    share: Tensor,
    softness: float = 0.05,
) -> float:
    """How much a mask's cells look like the object and not like what was around it.

    The mask decoder's own guess of its quality doesn't tell: it is high for any thing
    with a clear outline. So each cell is compared with the frames on which the object
    was prompted: does it match a cell of the object better than any cell off it?

    Args:
        similarities: of each prompted frame, float (cells, cells), new by prompted.
        labels: of each prompted frame, float (rows, columns), of the object.
        share: float (rows, columns), how much of each cell the new mask covers.
        softness: difference of similarity that counts as clear.

    Returns:
        in [0, 1], the mean over the mask; 0 for an empty one.
    """
    cells = share.flatten().nonzero()[:, 0]
    if len(cells) == 0:
        return 0.0
    on, off = [], []
    for alike, label in zip(similarities, labels, strict=True):
        flat = label.flatten()
        rows = alike[cells]
        on.append(rows[:, flat > 0.5 * flat.max()].amax(dim=1))
        elsewhere = flat == 0
        if elsewhere.any():
            off.append(rows[:, elsewhere].amax(dim=1))
    margin = torch.stack(on).amax(dim=0)
    if off:
        margin = margin - torch.stack(off).amax(dim=0)
    weights = share.flatten()[cells]
    chance = torch.sigmoid(margin / softness)
    return float((chance * weights).sum() / weights.sum())
