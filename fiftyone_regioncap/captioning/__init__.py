"""Captioners: they describe the object of a clip."""
