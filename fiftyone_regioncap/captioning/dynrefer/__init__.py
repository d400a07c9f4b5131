"""DynRefer (arXiv 2405.16071): captions, tags and more from nested views of regions."""
