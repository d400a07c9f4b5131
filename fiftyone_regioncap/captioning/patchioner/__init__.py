"""Patch-ioner: captions of any region of a frame from one backbone pass."""
