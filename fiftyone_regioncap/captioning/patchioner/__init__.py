"""Patch-ioner: captions of any region of a frame from one backbone pass."""

from fiftyone_regioncap.captioning.patchioner.captioner import (
    PatchionerCaptioner,
    RegionEmbedder,
)

__all__ = ["PatchionerCaptioner", "RegionEmbedder"]
