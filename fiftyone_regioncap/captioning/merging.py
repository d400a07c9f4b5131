"""Choice of the frame that stands for a clip.

Scores (tags, attributes, categories) are averaged over the frames. Sentences can't be:
they come from the one frame that shows the object best.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame, Mask, RegionClip, box_of_mask


def best_frame(clip: RegionClip) -> int | None:
    """Returns the index of the frame of a clip that shows the object best.

    Each frame gets the product of three numbers in [0, 1], and the highest wins, the
    earliest one where several are equal:

    - how large: the mask's area over the largest of the clip. An object that is partly
      hidden has a smaller mask too.
    - how sharp: :func:`sharpness` inside the mask over the sharpest of the clip.
    - how free: 1 where the mask's box touches no border of the frame, down to a half
      by :func:`inside_share`; times the propagator's score on that frame where the clip
      has a track.

    Returns:
        None when all masks are empty or of another size than their frames.
    """
    usable = [
        look
        for look, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True))
        if mask.shape == frame.shape[:2] and mask.any()
    ]
    if len(usable) < 2:
        return usable[0] if usable else None
    masks = [clip.masks[look] for look in usable]
    areas = np.array([np.count_nonzero(mask) for mask in masks], dtype=np.float64)
    sharp = np.array(
        [sharpness(clip.frames[look], clip.masks[look]) for look in usable]
    )
    free = np.array([(1 + inside_share(mask)) / 2 for mask in masks])
    worth = areas / areas.max() * free * track_scores(clip)[usable]
    if sharp.max() > 0:
        worth *= sharp / sharp.max()
    return usable[int(worth.argmax())]


def sharpness(frame: Frame, mask: Mask) -> float:
    """Returns the variance of the Laplacian over a mask; blur makes it small.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        mask: Object mask, bool (H, W), not empty.
    """
    box = box_of_mask(mask)
    assert box is not None
    x1, y1, x2, y2 = (int(edge) for edge in box)
    gray = cv2.cvtColor(np.ascontiguousarray(frame[y1:y2, x1:x2]), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_64F)[mask[y1:y2, x1:x2]].var())


def inside_share(mask: Mask) -> float:
    """Returns the share of a box's outline that lies inside the frame, in [0, 1].

    Where the box touches the frame's border, the object probably goes on beyond it.

    Args:
        mask: Object mask, bool (H, W), not empty.
    """
    height, width = mask.shape
    box = box_of_mask(mask)
    assert box is not None
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    touching = h * ((x1 <= 0) + (x2 >= width)) + w * ((y1 <= 0) + (y2 >= height))
    return float(1 - touching / (2 * (w + h)))


def track_scores(clip: RegionClip) -> NDArray[np.float64]:
    """Returns the propagator's score on each frame of a clip; 1 where it is unknown."""
    if clip.track is None:
        return np.ones(len(clip.frames))
    known = dict(zip(clip.track.frames.tolist(), clip.track.scores, strict=True))
    given = clip.frame_indices
    numbers = [*given, *range(len(given), len(clip.frames))]
    return np.array([float(known.get(number, 1)) for number in numbers])
