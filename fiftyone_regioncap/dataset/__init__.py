"""The only room that knows FiftyOne's label classes."""

from fiftyone_regioncap.dataset import (
    captions,
    fields,
    prompts,
    regions,
    runs,
    schema,
    status,
    tracks,
)
from fiftyone_regioncap.dataset.metadata import video_metadata

__all__ = [
    "captions",
    "fields",
    "prompts",
    "regions",
    "runs",
    "schema",
    "status",
    "tracks",
    "video_metadata",
]
