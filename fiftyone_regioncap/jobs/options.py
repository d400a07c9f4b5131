"""How jobs are done: plain values that forms, flags and arguments all end in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fiftyone_regioncap.dataset.tracks import MaskStorage
from fiftyone_regioncap.propagation.base import Direction
from fiftyone_regioncap.propagation.policy import Policy


@dataclass(frozen=True)
class PropagateOptions:
    """How to propagate prompts.

    Attributes:
        prompts: field with the prompts, ``frames.<name>`` or, for the first frame only,
            a sample-level field.
        output: frame-level field for the tracks.
        direction: which way from the prompts.
        start: first frame of interest, 0-based.
        stop: one past the last frame of interest; None means the end.
        overlap: whether objects may share pixels.
        mask_storage: ``"inline"``, ``"disk"``, or ``"auto"`` for inline until a frame
            nears MongoDB's limit.
        output_dir: where masks on disk go; None for beside the media.
        overwrite: whether to do samples again that are complete.
        policy: what ends a track before the video does.
    """

    prompts: str = "frames.prompts"
    output: str = "frames.tracks"
    direction: Direction = "both"
    start: int = 0
    stop: int | None = None
    overlap: bool = False
    mask_storage: MaskStorage = "auto"
    output_dir: str | None = None
    overwrite: bool = False
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True)
class CaptionOptions:
    """How to caption tracks.

    Attributes:
        tracks: frame-level field with the tracks.
        output: sample-level field for the captions.
        prompt: name of one of the captioner's prompts or a text; None for its default.
        window: captions cover windows of this many frames, or with ``"change"`` those
            between changes of the object; None for the whole track.
        summary: whether a track of several windows also gets a caption of its whole,
            made of theirs alone ("..., then ...").
        overwrite: whether to do samples again that are complete, reviewed captions
            included.
    """

    tracks: str = "frames.tracks"
    output: str = "captions"
    prompt: str | None = None
    window: int | Literal["change"] | None = None
    summary: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class RegionOptions:
    """How to caption the regions of images.

    Attributes:
        field: of Detections, Polylines or Keypoints.
        prompt: name of one of the captioner's prompts or a text; None for its default.
        overwrite: whether to caption regions again that have a caption.
    """

    field: str
    prompt: str | None = None
    overwrite: bool = False
