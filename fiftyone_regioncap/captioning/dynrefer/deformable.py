"""DynRefer's alignment of views: a deformable convolution in plain torch.

It is DCNv4 (arXiv 2401.06197) whose offsets look at two maps, the view to be aligned
and the region's own view. DCNv4 itself is a CUDA extension; this runs wherever
``grid_sample`` does, with the same weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 4
"""Channel groups with offsets of their own; the checkpoints don't say, all have 4."""

KERNEL = 3
"""Side of the kernel."""

POINTS = KERNEL * KERNEL
"""Points that each output cell samples in each group."""


def deformable_sample(value: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
    """Sums bilinear samples around each cell, zero outside the map.

    Args:
        value: Feature maps, float (N, H, W, C).
        offset_mask: Offsets and weights, float (N, H, W, at least 27 * groups): for
            each group nine (dx, dy) pairs and then nine weights; what follows the
            groups is padding. The nine points go down the columns: the second one lies
            below the first.
        groups: Number of groups that the channels are split into.

    Returns:
        Float (N, H, W, C).
    """
    batch, height, width, channels = value.shape
    maps = value.permute(0, 3, 1, 2).reshape(batch * groups, -1, height, width)
    used = offset_mask[..., : groups * POINTS * 3].unflatten(-1, (groups, POINTS * 3))
    used = used.permute(0, 3, 1, 2, 4).flatten(0, 1)
    offsets = used[..., : POINTS * 2].unflatten(-1, (POINTS, 2))
    weights = used[..., POINTS * 2 :]
    rows = torch.arange(height, device=value.device, dtype=value.dtype)
    columns = torch.arange(width, device=value.device, dtype=value.dtype)
    size = value.new_tensor([width, height])
    total = torch.zeros_like(maps)
    for point in range(POINTS):
        column, row = divmod(point, KERNEL)
        y, x = torch.meshgrid(
            rows + row - KERNEL // 2, columns + column - KERNEL // 2, indexing="ij"
        )
        where = torch.stack([x, y], dim=-1) + offsets[..., point, :]
        grid = (2 * where + 1) / size - 1
        sampled = F.grid_sample(maps, grid, align_corners=False)
        total = total + sampled * weights[:, None, :, :, point]
    return total.reshape(batch, channels, height, width).permute(0, 2, 3, 1)


class DeformableAlign(nn.Module):
    """Moves the features of a wider view to where the region's own view has them.

    Attributes:
        value_proj: Projection of the features that are sampled.
        offset_mask_dw: Two input channels for each output channel. Of the concatenated
            maps the first half of the outputs sees only the wider view, the second
            half only the region's.
        offset_mask: Projection to offsets and weights.
        output_proj: Projection of the sums.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Padded to a multiple of eight, as the CUDA kernel wanted it.
        outputs = -(-GROUPS * POINTS * 3 // 8) * 8
        self.value_proj = nn.Linear(channels, channels)
        self.offset_mask_dw = nn.Conv2d(
            2 * channels, channels, KERNEL, padding=KERNEL // 2, groups=channels
        )
        self.offset_mask = nn.Linear(channels, outputs)
        self.output_proj = nn.Linear(channels, channels)

    def forward(self, wider: Tensor, own: Tensor) -> Tensor:
        """Aligns the features of a wider view.

        Args:
            wider: Features of the region in a wider view, float (N, C, H, W).
            own: Features of the region in its own view, float (N, C, H, W).

        Returns:
            Float (N, C, H, W).
        """
        moves = self.offset_mask_dw(torch.cat([wider, own], dim=1))
        moves = self.offset_mask(moves.permute(0, 2, 3, 1))
        value = self.value_proj(wider.permute(0, 2, 3, 1))
        sampled = deformable_sample(value, moves, GROUPS)
        return self.output_proj(sampled).permute(0, 3, 1, 2)
