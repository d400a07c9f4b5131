"""What is wrong with a clip, before any model looks at it."""

from __future__ import annotations

import numpy as np

from fiftyone_regioncap.core.types import RegionClip


def clip_problem(clip: RegionClip) -> str | None:
    """What is wrong with a clip, and what to do; None when nothing is.

    Args:
        clip: its frames have to be uint8 (H, W, 3), one or more of them, with a bool
            (H, W) mask each; single masks may be empty, but not all of them.
    """
    if not clip.frames or len(clip.frames) != len(clip.masks):
        return (
            f"the clip has {len(clip.frames)} frames and {len(clip.masks)} masks; give "
            "one mask for each of one or more frames where the object is visible"
        )
    for frame, mask in zip(clip.frames, clip.masks, strict=True):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            return f"a frame is {frame.dtype} {frame.shape}; give uint8 (H, W, 3) RGB"
        if mask.shape != frame.shape[:2]:
            return (
                f"a mask is {mask.shape}, its frame {frame.shape[:2]}; give masks of "
                "the frame's size, (height, width)"
            )
    if not any(mask.any() for mask in clip.masks):
        return "the mask is empty on every frame; mark the object on one"
    return None
