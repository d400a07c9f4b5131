"""Reviews captions with a person."""
