"""Videos: exact frames by number, sampling of frames, clips, cuts."""
