"""Measurements of a region that need no model."""
