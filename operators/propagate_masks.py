"""The operator ``propagate_masks``."""

from __future__ import annotations

from ._track_operator import TrackOperator


class PropagateMasks(TrackOperator):
    """Carries boxes, masks, points or polylines through videos as masks."""

    name = "propagate_masks"
    label = "Propagate masks"
    description = "Carry boxes, masks, points or polylines through videos as masks"
    action = "Propagate"
    propagates = True
    captions = False
