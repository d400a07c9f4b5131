"""Checks clips before any model looks at them."""

from __future__ import annotations

import numpy as np

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import RegionClip


def check_clip(clip: RegionClip, *, rgb: bool = True) -> None:
    """Raises an error when a clip cannot be described.

    Args:
        clip: Clip to check, see :func:`clip_problem`.
        rgb: Whether frames must be RGB, see :func:`clip_problem`.

    Raises:
        PromptError: If it cannot; the message says why and what to do.
    """
    problem = clip_problem(clip, rgb=rgb)
    if problem is not None:
        raise PromptError(problem)


def clip_problem(clip: RegionClip, *, rgb: bool = True) -> str | None:
    """Returns what is wrong with a clip and what to do; None when nothing is.

    Args:
        clip: Must have one or more frames with a bool (H, W) mask each. Single masks
            may be empty, but not all of them.
        rgb: Whether frames must be uint8 (H, W, 3).
    """
    if clip.problem is not None:
        return clip.problem
    if not clip.frames or len(clip.frames) != len(clip.masks):
        return (
            f"the clip has {len(clip.frames)} frames and {len(clip.masks)} masks; give "
            "one mask for each of one or more frames where the object is visible"
        )
    for frame, mask in zip(clip.frames, clip.masks, strict=True):
        if rgb and (frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3):
            return f"a frame is {frame.dtype} {frame.shape}; give uint8 (H, W, 3) RGB"
        if np.shape(mask) != np.shape(frame)[:2]:
            return (
                f"a mask is {np.shape(mask)}, its frame {np.shape(frame)[:2]}; give "
                "masks of the frames' size, (height, width)"
            )
    if not any(mask.any() for mask in clip.masks):
        return "the mask is empty on every frame; mark the object on one"
    return None
