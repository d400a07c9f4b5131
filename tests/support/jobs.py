"""What tests of jobs share."""

from __future__ import annotations

from collections.abc import Sequence

import fiftyone as fo


def forget(
    dataset: fo.Dataset, kinds: Sequence[str] = ("status", "error", "origin")
) -> None:
    """Removes the tracks and captions that a job wrote, and what it keeps of them.

    Args:
        dataset: The dataset.
        kinds: Kinds of the fields that only jobs write, which are read-only.
    """
    dataset.delete_frame_field("tracks")
    names = [f"{field}_{kind}" for field in ("tracks", "captions") for kind in kinds]
    known = [name for name in names if dataset.has_sample_field(name)]
    for name in known:
        field = dataset.get_field(name)
        field.read_only = False
        field.save()
    dataset.delete_sample_fields(["captions", *known])
