"""Reads exact frames of videos by number, samples them, and detects cuts."""
