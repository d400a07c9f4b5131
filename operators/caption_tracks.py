"""The operator ``caption_tracks``."""

from __future__ import annotations

from ._track_operator import TrackOperator


class CaptionTracks(TrackOperator):
    """Describes every track of a frame field."""

    name = "caption_tracks"
    label = "Caption tracks"
    description = "Describe every track of a frame field"
    action = "Caption"
    propagates = False
    captions = True
