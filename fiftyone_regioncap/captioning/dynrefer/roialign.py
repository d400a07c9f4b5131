"""RoIAlign (He et al. 2017) in plain torch, as two small matrix products a region.

The samples of one region lie on a grid, and bilinear interpolation on a grid is
separable: one matrix picks and averages rows, one columns. Regions are not shifted by
half a cell (``aligned=False`` in torchvision), and what lies outside the map repeats
its border.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align(
    features: Tensor, rois: Tensor, *, output: int, scale: float, samples: int = 2
) -> Tensor:
    """Resamples one region of each feature map to a fixed size.

    Args:
        features: Feature maps, float (R, C, H, W), one for each region.
        rois: Boxes as x1, y1, x2, y2 in pixels of the image, float (R, 4).
        output: Side of the square result in cells.
        scale: Number of cells of the map per pixel of the image.
        samples: Number of points along each side of an output cell, averaged.

    Returns:
        Float (R, C, output, output).
    """
    height, width = features.shape[-2:]
    x1, y1, x2, y2 = (rois * scale).unbind(dim=1)
    rows = _sampling_matrix(y1, y2, height, output, samples)
    columns = _sampling_matrix(x1, x2, width, output, samples)
    return rows[:, None] @ features @ columns[:, None].transpose(-1, -2)


def _sampling_matrix(
    first: Tensor, last: Tensor, length: int, output: int, samples: int
) -> Tensor:
    """Returns weights (R, output, length) of the cells in each average, on one axis."""
    # A region narrower than a cell is taken as one cell wide.
    bins = (last - first).clamp(min=1) / output
    steps = torch.arange(output * samples, device=first.device, dtype=first.dtype)
    points = first[:, None] + bins[:, None] * ((steps + 0.5) / samples)
    points = points.clamp(0, length - 1)
    below = points.floor().long().clamp(max=max(length - 2, 0))
    share = points - below
    weights = points.new_zeros(*points.shape, length)
    weights.scatter_(2, below[..., None], (1 - share)[..., None])
    above = (below + 1).clamp(max=length - 1)
    weights.scatter_add_(2, above[..., None], share[..., None])
    return weights.unflatten(1, (output, samples)).mean(dim=2)
