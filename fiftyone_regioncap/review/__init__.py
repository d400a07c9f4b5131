"""Going through captions with a person."""
