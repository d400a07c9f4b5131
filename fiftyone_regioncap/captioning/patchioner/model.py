"""Frames to region embeddings to captions, without anything of videos or FiftyOne."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fiftyone_regioncap.captioning.patchioner.aggregation import (
    MEAN,
    AttentionMap,
    Compat,
    Points,
    Region,
    Weighting,
    Whole,
    point_counts,
    region_weights,
)
from fiftyone_regioncap.captioning.patchioner.language import Description, Language
from fiftyone_regioncap.captioning.patchioner.vision import Backbone, FrameFeatures
from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.core.types import Frame


def embed_regions(
    features: FrameFeatures,
    regions: Sequence[Region],
    weighting: Weighting = MEAN,
    *,
    compat: Compat = "fixed",
) -> Tensor:
    """Embeds regions of a frame.

    Args:
        features: Features of the frame.
        regions: Regions in pixels of the frame.
        weighting: Weighting of the patches of each region.
        compat: ``reference`` keeps the scale of its sums (points, and attention over
            the whole image, are divided by the number of patches) and rescales the
            attention under each box for the boxes after it.

    Returns:
        float32 (regions, D), not normalized.

    Raises:
        PromptError: If nothing of a region is in the frame.
    """
    grid = features.grid
    attention = None
    if features.attention is not None:
        attention = AttentionMap(features.attention, compat)
    width = features.patches.shape[1]
    if not regions:
        return features.patches.new_zeros(0, width)
    maps = []
    for region in regions:
        weights = region_weights(region, grid, weighting, attention)
        if compat == "reference":
            weights = weights * _reference_scale(region, features, weighting)
        maps.append(torch.from_numpy(weights).flatten())
    return torch.stack(maps).to(features.patches) @ features.patches


def _reference_scale(
    region: Region, features: FrameFeatures, weighting: Weighting
) -> float:
    """Returns what the reference's sum of weights is where it is not 1."""
    grid = features.grid
    patches = grid.rows * grid.columns
    if isinstance(region, Points):
        counts = point_counts(region.points / [grid.width, grid.height], grid)
        if weighting.kind == "attention" and features.attention is not None:
            counts = counts * features.attention
        return float(counts.sum()) / patches
    if isinstance(region, Whole) and weighting.kind == "attention":
        return 1 / patches
    return 1.0


@dataclass(frozen=True)
class Patchioner:
    """A backbone and a language part that belong together.

    Attributes:
        backbone: Encodes frames.
        language: Turns embeddings into captions.
        compat: Whose numbers to compute; see :data:`~.aggregation.Compat`.
    """

    backbone: Backbone
    language: Language
    compat: Compat = "fixed"

    def __post_init__(self) -> None:
        if self.backbone.width != self.language.width:
            raise WeightsError(
                f"the backbone gives {self.backbone.width} channels and the decoder "
                f"reads {self.language.width}; use parts of one checkpoint"
            )

    def describe(
        self,
        frame: Frame,
        regions: Sequence[Region],
        weighting: Weighting = MEAN,
    ) -> list[Description]:
        """Describes regions of one image.

        Args:
            frame: RGB frame, uint8 (H, W, 3).
            regions: Regions in its pixels.
            weighting: Weighting of the patches of each region.

        Raises:
            PromptError: If nothing of a region is in the frame.
        """
        (features,) = self.backbone.encode([frame])
        return self.language.describe(
            embed_regions(features, regions, weighting, compat=self.compat)
        )
