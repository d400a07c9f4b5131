"""SAM 2 and its kin through video of any length, many objects in one batch."""

from fiftyone_regioncap.propagation.sam2.propagator import (
    EdgeTamPropagator,
    MaskStream,
    Sam2Propagator,
    Sam3TrackerPropagator,
    StreamingPropagator,
)
from fiftyone_regioncap.propagation.sam2.stream import FrameLogits, LogitsStream

__all__ = [
    "EdgeTamPropagator",
    "FrameLogits",
    "LogitsStream",
    "MaskStream",
    "Sam2Propagator",
    "Sam3TrackerPropagator",
    "StreamingPropagator",
]
