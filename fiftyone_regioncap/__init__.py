"""Turns videos into FiftyOne datasets of tracked, described objects."""
