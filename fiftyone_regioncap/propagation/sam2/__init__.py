"""SAM 2 and related models through video of any length, many objects in one batch."""
