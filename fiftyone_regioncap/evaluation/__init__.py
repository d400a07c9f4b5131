"""Evaluates masks and captions against references."""
