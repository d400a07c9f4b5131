"""The operator ``propagate_and_caption``."""

from __future__ import annotations

from ._track_operator import TrackOperator


class PropagateAndCaption(TrackOperator):
    """Masks the marked objects through videos and describes each of them."""

    name = "propagate_and_caption"
    label = "Propagate and caption"
    description = "Mask the marked objects through videos and describe each of them"
    action = "Propagate and caption"
    propagates = True
    captions = True
