"""What captions say: facets, checks, differences, parts and wholes."""
