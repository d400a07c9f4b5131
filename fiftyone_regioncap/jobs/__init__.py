"""Jobs that operators, the SDK and the shell all run.

Work streams through stages that pull from each other over short queues: frames are
decoded ahead of the propagator, the propagator runs ahead of the writer, clips are put
together ahead of the captioner, and a video is captioned while the next one is
propagated. What goes wrong with one sample is recorded on that sample, and the job goes
on.
"""

from fiftyone_regioncap.jobs.options import (
    CaptionOptions,
    PropagateOptions,
    RegionOptions,
)
from fiftyone_regioncap.jobs.summary import Failure, Summary

__all__ = [
    "CaptionOptions",
    "Failure",
    "PropagateOptions",
    "RegionOptions",
    "Summary",
]
