"""Names that fields of a dataset may have."""

from __future__ import annotations

FRAMES_PREFIX = "frames."
"""Begins the names of fields of frames."""

OWN_FIELDS = frozenset(
    {
        "created_at",
        "filepath",
        "frame_number",
        "frames",
        "id",
        "last_modified_at",
        "media_type",
        "metadata",
        "sample_id",
        "support",
        "tags",
    }
)
"""Fields that FiftyOne keeps for itself."""

BOOKKEEPING = ("_status", "_error", "_origin", "_objects")
"""Ends of the names of sample fields in which jobs keep how far they have come."""


def field_name_problem(field: str) -> str | None:
    """Returns why labels can't be written to a field of this name.

    Args:
        field: Name of the field, with or without ``frames.`` in front.

    Returns:
        What is wrong and what to do; None when nothing is.
    """
    name = field.removeprefix(FRAMES_PREFIX)
    if not name.isidentifier() or name.startswith("_"):
        return (
            f"{field!r} is no field name; use letters, digits and underscores, and "
            "start with a letter"
        )
    if name in OWN_FIELDS:
        return f"{field!r} is FiftyOne's own; give the result another field"
    return None
