"""How good masks and captions are."""
