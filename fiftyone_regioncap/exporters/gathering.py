"""Puts what formats need together: masks by track, and by caption."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.dataset.encoded import EncodedLabel
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.video.sampling import sample_frames

NO_LABEL = "object"
"""The category of objects whose name isn't known."""


@dataclass
class TrackMasks:
    """All masks of one track, encoded.

    Attributes:
        index: the object id.
        label: what it is, when its labels say.
        masks: by 0-based frame, ascending.
    """

    index: int
    label: str | None
    masks: dict[int, EncodedLabel]


def by_track(
    video: VideoRecord, frames: Collection[int] | None = None
) -> list[TrackMasks]:
    """A video's masks track by track.

    Formats that go by track need all masks of one video at once; encoded, a mask is a
    few hundred bytes.

    Args:
        video: whose.
        frames: 0-based frames to read; None means all.
    """
    tracks: dict[int, TrackMasks] = {}
    for frame, labels in video.masks(frames):
        for index, label in labels.items():
            track = tracks.setdefault(index, TrackMasks(index, label.label, {}))
            track.label = track.label or label.label
            track.masks[frame] = label
    return [track for _, track in sorted(tracks.items())]


def shown(video: VideoRecord, index: int, frame: int) -> CaptionRecord | None:
    """The caption whose window covers a frame; of several, the one that begins last."""
    covering = [
        record
        for record in video.captions.get(index, ())
        if record.support[0] <= frame <= record.support[1]
    ]
    return covering[-1] if covering else None


@dataclass(frozen=True)
class Captioned:
    """A caption with masks of its object.

    Attributes:
        record: the caption.
        label: what the object is, when known.
        masks: by 0-based frame, ascending; at least one, all inside its support.
    """

    record: CaptionRecord
    label: str | None
    masks: dict[int, EncodedLabel]

    @property
    def best(self) -> tuple[int, EncodedLabel]:
        """The frame where the object is largest, and its mask there."""
        return max(self.masks.items(), key=lambda item: item[1].area)


def captioned(video: VideoRecord, count: int | None) -> Iterator[Captioned]:
    """A video's captions with some of their masks, by object and time.

    Args:
        video: whose.
        count: masks of each, evenly over where the object is visible; None for all.
    """
    frames: dict[tuple[int, tuple[int, int]], list[int]] = {}
    labels: dict[int, str | None] = {}
    wanted: set[int] | None = None if count is None else set()
    for track in video.tracks:
        labels[track.object_id] = video.label(track.object_id) or track.label
        for record in video.captions.get(track.object_id, ()):
            first, last = record.support
            inside = (track.frames >= first) & (track.frames <= last)
            visible = track.frames[inside]
            if not len(visible):
                continue
            chosen = (
                visible.tolist() if count is None else sample_frames(visible, count)
            )
            frames[record.key] = [int(frame) for frame in chosen]
            if wanted is not None:
                wanted.update(frames[record.key])
    masks = dict(video.masks(wanted))
    for records in video.captions.values():
        for record in records:
            if record.key in frames:
                own = {
                    frame: masks[frame][record.index]
                    for frame in dict.fromkeys(frames[record.key])
                    if record.index in masks.get(frame, {})
                }
                yield Captioned(record, record.label or labels[record.index], own)
