"""Dense maps: where a text is on a frame, and captions for all of a frame at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.patchioner.aggregation import (
    Grid,
    MaskRegion,
    Region,
)
from fiftyone_regioncap.captioning.patchioner.language import Description
from fiftyone_regioncap.captioning.patchioner.model import Patchioner, embed_regions
from fiftyone_regioncap.captioning.patchioner.vision import FrameFeatures
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Box, Frame, Mask, box_of_mask


@dataclass(frozen=True)
class DenseRegion:
    """A region of a frame and its caption.

    Attributes:
        mask: Mask of the region, bool (H, W) at the frame's size.
        box: Bounding box of the mask in pixel edges.
        patches: Number of patches in it.
        description: Caption of the region with its confidence.
    """

    mask: Mask
    box: Box
    patches: int
    description: Description


def similarity_map(
    features: FrameFeatures, vector: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Computes how similar each patch is to a text or a region.

    Args:
        features: Features of the frame.
        vector: Embedding of :meth:`~.captioner.PatchionerCaptioner.embed_text` or
            ``embed``, float (D,).

    Returns:
        Cosines, float32 (rows, columns) in [-1, 1].
    """
    query = torch.from_numpy(np.asarray(vector, dtype=np.float32)).to(features.patches)
    if query.shape != features.patches.shape[1:]:
        raise PromptError(
            f"the vector has shape {tuple(query.shape)}, patches have "
            f"{features.patches.shape[1]} channels; embed it with the same model"
        )
    cosines = torch.nn.functional.cosine_similarity(features.patches, query[None])
    grid = features.grid
    return cosines.float().cpu().numpy().reshape(grid.rows, grid.columns)


def heatmap(
    features: FrameFeatures, vector: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Computes a similarity map at the frame's size, as for ``fo.Heatmap(map=...)``.

    Args:
        features: Features of the frame.
        vector: Embedding, see :func:`similarity_map`.

    Returns:
        float32 (H, W) in [-1, 1], linear between the centers of patches; NaN where
        no patch sees the frame, as where cropping has cut it off.
    """
    grid = features.grid
    patches = similarity_map(features, vector)
    top, left, height, width = _seen(grid)
    seen = cv2.resize(patches, (width, height), interpolation=cv2.INTER_LINEAR)
    full = np.full((grid.height, grid.width), np.nan, dtype=np.float32)
    full[top : top + height, left : left + width] = seen
    return full


def clusters(
    features: FrameFeatures, count: int, smallest: int = 3
) -> NDArray[np.int64]:
    """Parts the patches into connected clusters of like features.

    By Ward's linkage over unit features, where only neighboring patches may join.

    Args:
        features: Features of the frame.
        count: Number of clusters, at most as many as there are patches.
        smallest: Minimum number of patches of a cluster; smaller ones are left out.

    Returns:
        int64 (rows, columns): the cluster of each patch from 0, largest first; -1 for
        those left out.
    """
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.feature_extraction.image import grid_to_graph

    grid = features.grid
    total = grid.rows * grid.columns
    unit = torch.nn.functional.normalize(features.patches.float(), dim=1).cpu().numpy()
    found = AgglomerativeClustering(
        n_clusters=min(count, total),
        connectivity=grid_to_graph(grid.rows, grid.columns),
        linkage="ward",
    ).fit_predict(unit)
    sizes = np.bincount(found)
    order = np.argsort(-sizes, kind="stable")
    ranks = np.empty(len(sizes), dtype=np.int64)
    ranks[order] = np.arange(len(sizes))
    ranks[sizes < smallest] = -1
    return ranks[found].reshape(grid.rows, grid.columns)


def caption_everything(
    model: Patchioner,
    frame: Frame | FrameFeatures,
    *,
    count: int = 16,
    smallest: int = 3,
    proposals: Sequence[Mask] | None = None,
) -> list[DenseRegion]:
    """Describes every region of a frame.

    Args:
        model: Backbone and language part.
        frame: RGB frame, uint8 (H, W, 3), or its features.
        count: Number of patch clusters.
        smallest: Minimum number of patches of a cluster; smaller ones are left out.
        proposals: Masks to describe instead of clusters, each bool (H, W).

    Returns:
        Regions, largest first for clusters, in order for proposals.

    Raises:
        PromptError: If a proposal is empty or of another size.
    """
    if isinstance(frame, FrameFeatures):
        features = frame
    else:
        (features,) = model.backbone.encode([frame])
    masks = list(proposals or ())
    if proposals is None:
        parts = clusters(features, count, smallest)
        masks = [patch_mask(parts == n, features.grid) for n in range(parts.max() + 1)]
        # On a frame of few pixels, some patches lie between their centers.
        masks = [mask for mask in masks if mask.any()]
    regions: list[Region] = [MaskRegion(mask) for mask in masks]
    embeddings = embed_regions(features, regions, compat=model.compat)
    described = model.language.describe(embeddings)
    answers = []
    for mask, description in zip(masks, described, strict=True):
        box = box_of_mask(mask)
        if box is not None:
            patches = round(mask.sum() / mask.size * len(features.patches))
            answers.append(DenseRegion(mask, box, patches, description))
    return answers


def patch_mask(patches: NDArray[np.bool_], grid: Grid) -> Mask:
    """Returns the mask of a frame's pixels whose centers lie under some patches.

    Args:
        patches: Selected patches, bool (rows, columns).
        grid: Patch grid of the frame.

    Returns:
        bool (H, W).
    """
    top, left, height, width = _seen(grid)
    rows = ((np.arange(height) + 0.5) * grid.rows / height).astype(int)
    columns = ((np.arange(width) + 0.5) * grid.columns / width).astype(int)
    full = np.zeros((grid.height, grid.width), dtype=bool)
    full[top : top + height, left : left + width] = patches[rows][:, columns]
    return full


def _seen(grid: Grid) -> tuple[int, int, int, int]:
    """Returns top, left, height and width in pixels of the frame under the patches."""
    height, width = grid.height, grid.width
    if grid.crop:
        height = width = min(height, width)
    top, left = (grid.height - height) // 2, (grid.width - width) // 2
    share = grid.rows * grid.patch / grid.side
    return top, left, max(1, round(height * share)), max(1, round(width * share))
