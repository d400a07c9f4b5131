"""Carrying soft masks from remembered frames to a new one by matching features.

Space-time label propagation as in A. Jabri et al., "Space-Time Correspondence as a
Contrastive Random Walk", NeurIPS 2020, over the embeddings of MobileSAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fiftyone_regioncap.propagation.mobilesam.segmenter import STRIDE, Grid


@dataclass(frozen=True)
class Memory:
    """A remembered frame.

    Attributes:
        frame: its 0-based index.
        features: float (256, rows, columns), unit length in each cell.
        labels: by object id, float (rows, columns): the share of each cell that is the
            object's.
        permanent: whether it was prompted on, and is never forgotten.
    """

    frame: int
    features: Tensor
    labels: dict[int, Tensor]
    permanent: bool


def unit_features(embedding: Tensor, mean: Tensor) -> Tensor:
    """Features whose dot product says how alike two cells are.

    Args:
        embedding: float (256, rows, columns).
        mean: float (256,), what all cells have in common.

    Returns:
        float (256, rows, columns), unit length in each cell.
    """
    return F.normalize(embedding - mean[:, None, None], dim=0)


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
    features: Tensor,
    memories: Sequence[Memory],
    penalties: Sequence[Tensor | None],
    object_ids: Sequence[int],
    *,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """Soft masks on a new frame from those on remembered frames.

    Args:
        features: float (256, rows, columns) of the new frame.
        memories: frames on which all the objects are labelled.
        penalties: of each memory, from :func:`offset_penalty`; None for no window.
        object_ids: N objects.
        neighbours: matches counted for each cell.
        temperature: of the softmax over them.

    Returns:
        float (N, rows, columns) in [0, 1].
    """
    rows, columns = features.shape[1:]
    queries = features.flatten(1).T
    similarities = []
    for memory, penalty in zip(memories, penalties, strict=True):
        alike = queries @ memory.features.flatten(1)
        similarities.append(alike if penalty is None else alike + penalty)
    top, at = torch.cat(similarities, dim=1).topk(neighbours, dim=1)
    weights = (top / temperature).softmax(dim=1)
    labels = torch.stack(
        [
            torch.cat([memory.labels[object_id].flatten() for memory in memories])
            for object_id in object_ids
        ]
    )
    return (labels[:, at] * weights).sum(dim=2).view(-1, rows, columns)
