"""The plugin's operators and panels, one a file; thin over the library."""

from __future__ import annotations

from .caption_regions import CaptionRegions
from .caption_tracks import CaptionTracks
from .propagate_and_caption import PropagateAndCaption
from .propagate_masks import PropagateMasks
from .review_panel import ReviewPanel

OPERATORS = (
    PropagateMasks,
    CaptionTracks,
    PropagateAndCaption,
    CaptionRegions,
    ReviewPanel,
)
