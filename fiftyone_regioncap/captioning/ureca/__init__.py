"""URECA (arXiv 2504.05305): captions of a region that fit no other region."""
