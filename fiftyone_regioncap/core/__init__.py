"""Core types of all rooms: regions, errors, progress and options."""
