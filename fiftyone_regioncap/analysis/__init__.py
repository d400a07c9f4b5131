"""Analyzes captions: facets, checks, differences, parts and wholes."""
