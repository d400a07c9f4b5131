"""SAM 2 and its kin through video of any length, many objects in one batch."""
