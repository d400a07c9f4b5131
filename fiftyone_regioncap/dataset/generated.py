"""Writes what is written to patches and frames through to where these came from.

FiftyOne keeps the samples of ``to_patches()`` and ``to_frames()`` views in a dataset of
their own, which it makes anew when the view is loaded again. Its own ``set_values``
writes through to the source; so does what writes past it.
"""

from __future__ import annotations

import fiftyone.core.patches as fop
import fiftyone.core.video as fov
from fiftyone.core.collections import SampleCollection

from fiftyone_regioncap.dataset.targets import Sample


def is_generated(collection: SampleCollection) -> bool:
    """Returns whether a collection holds patches, or frames as images."""
    return isinstance(collection, (fop._PatchesView, fov.FramesView))


def write_through(sample: Sample, field: str) -> None:
    """Copies a field of a patch or frame to the sample or video that it is of.

    Args:
        sample: A sample that was just written; of others than patches and frames,
            nothing has to be copied.
        field: Name of the field.
    """
    view = sample._collection
    if not is_generated(view):
        return
    source = view._source_collection
    prefix = source._FRAMES_PREFIX if isinstance(view, fov.FramesView) else ""
    _, here = view._get_label_field_path(field)
    _, there = source._get_label_field_path(prefix + field)
    for path in view._dataset.get_field_schema(flat=True):
        attribute = path.removeprefix(f"{here}.")
        known = "." in attribute or attribute == path
        if not known and source.get_field(f"{there}.{attribute}") is None:
            view._sync_source_field_schema(path)
    view._sync_source(fields=[field], ids=[sample.id])
