"""Assembles clips of tracks for captioners, decoding each frame once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from fiftyone_regioncap.core.types import (
    Box,
    Frame,
    Mask,
    RegionClip,
    Track,
    polygons_to_mask,
)
from fiftyone_regioncap.video.sampling import sample_frames
from fiftyone_regioncap.video.timeline import Timeline

FRAMES_AT_ONCE = 64
"""Maximum number of decoded frames held at once: 180 MB at 1280 x 720."""

MaskReader: TypeAlias = Callable[
    [Mapping[int, Collection[int]]], Iterator[tuple[int, Mapping[int, Mask]]]
]
"""Takes object ids by frame; yields each frame with its masks by object id."""

FrameReader: TypeAlias = Callable[[Sequence[int]], Iterable[tuple[int, Frame]]]
"""Takes ascending frame indices; yields (index, frame)."""


@dataclass(frozen=True)
class ClipPlan:
    """The frames that are chosen for one caption.

    Attributes:
        track: The part of the track within the support.
        support: (first, last) 0-based frames, inclusive.
        frames: The frames that the captioner will see, 0-based, ascending.
    """

    track: Track
    support: tuple[int, int]
    frames: tuple[int, ...]


def plan_clip(track: Track, support: tuple[int, int], count: int) -> ClipPlan:
    """Chooses the frames of a track's window.

    Args:
        track: The whole track.
        support: (first, last) 0-based frames, inclusive; the track is visible in it.
        count: Number of frames that the captioner takes.
    """
    inside = (track.frames >= support[0]) & (track.frames <= support[1])
    part = replace(
        track,
        frames=track.frames[inside],
        boxes=track.boxes[inside],
        scores=track.scores[inside],
    )
    return ClipPlan(part, support, tuple(sample_frames(part.frames, count)))


def assemble(
    plans: Iterable[ClipPlan],
    read_frames: FrameReader,
    read_masks: MaskReader,
    timeline: Timeline | None,
) -> Iterator[tuple[ClipPlan, RegionClip]]:
    """Assembles the clips of one video.

    Plans are taken in order of time in groups that share decoded frames, so that a
    frame that several objects need is decoded once, and no video is held whole.

    Args:
        plans: The clips' frames.
        read_frames: Reads frames of the video.
        read_masks: Reads masks of the video's tracks.
        timeline: When the video's frames are shown; None where nothing says so. The
            rate of a clip is that of its own frames.

    Yields:
        Each plan with its clip, in order of time.
    """
    for group in _groups(sorted(plans, key=lambda plan: plan.support)):
        wanted: dict[int, set[int]] = {}
        for plan in group:
            for frame in plan.frames:
                wanted.setdefault(frame, set()).add(plan.track.object_id)
        frames = dict(read_frames(sorted(wanted)))
        masks = dict(read_masks(wanted))
        for plan in group:
            yield plan, _clip(plan, frames, masks, timeline)


def _clip(
    plan: ClipPlan,
    frames: Mapping[int, Frame],
    masks: Mapping[int, Mapping[int, Mask]],
    timeline: Timeline | None,
) -> RegionClip:
    boxes = dict(zip(plan.track.frames.tolist(), plan.track.boxes, strict=True))

    def mask(frame: int) -> Mask:
        own = masks.get(frame, {}).get(plan.track.object_id)
        if own is None:
            return box_mask(tuple(boxes[frame]), *frames[frame].shape[:2])
        return own

    return RegionClip(
        frames=[frames[frame] for frame in plan.frames],
        masks=[mask(frame) for frame in plan.frames],
        frame_indices=plan.frames,
        label=plan.track.label,
        fps=None
        if timeline is None
        else timeline.rate_between(plan.frames[0], plan.frames[-1]),
        support=plan.support,
        track=plan.track,
    )


def box_mask(box: Box, height: int, width: int) -> Mask:
    """Fills a box, for tracks that have boxes only; returns bool (height, width)."""
    x1, y1, x2, y2 = box
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    return polygons_to_mask([corners], height, width)


def _groups(plans: Iterable[ClipPlan]) -> Iterator[list[ClipPlan]]:
    group: list[ClipPlan] = []
    frames: set[int] = set()
    for plan in plans:
        if group and len(frames | set(plan.frames)) > FRAMES_AT_ONCE:
            yield group
            group, frames = [], set()
        group.append(plan)
        frames |= set(plan.frames)
    if group:
        yield group
