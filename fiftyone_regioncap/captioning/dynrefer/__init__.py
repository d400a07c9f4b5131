"""DynRefer (arXiv 2405.16071): regions through nested views; captions, tags, ...."""
