"""DynRefer (arXiv 2405.16071): regions through nested views; captions, tags, ...."""

from fiftyone_regioncap.captioning.dynrefer.captioner import DynReferCaptioner

__all__ = ["DynReferCaptioner"]
