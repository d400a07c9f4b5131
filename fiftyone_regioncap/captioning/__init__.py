"""Describing regions."""
