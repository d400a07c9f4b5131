"""Patch-ioner: captions of any region of a frame from one backbone pass."""

from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.patchioner.text_encoder import PatchionerTexts

__all__ = ["PatchionerCaptioner", "PatchionerTexts"]
