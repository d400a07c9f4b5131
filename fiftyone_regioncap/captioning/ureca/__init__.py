"""URECA (arXiv 2504.05305): captions that tell regions apart."""
