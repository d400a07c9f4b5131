"""Puts what formats need together: masks by track, and by caption."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.dataset.encoded import EncodedLabel
from fiftyone_regioncap.exporters.captions import caption_to_json
from fiftyone_regioncap.exporters.files import dumps, write_object
from fiftyone_regioncap.exporters.reading import NO_LABEL
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import Merge
from fiftyone_regioncap.video.sampling import sample_frames


@dataclass
class TrackMasks:
    """Masks and captions of one track.

    Attributes:
        index: The object id.
        label: Name of the object, when it is known.
        masks: Encoded masks by 0-based frame, ascending.
        captions: Captions in the order of time.
    """

    index: int
    label: str | None
    masks: dict[int, EncodedLabel]
    captions: Sequence[CaptionRecord] = ()

    @property
    def category(self) -> str:
        """The label, or what stands for an unknown one."""
        return self.label or NO_LABEL

    @property
    def captions_json(self) -> list[dict[str, Any]]:
        """The captions as JSON values."""
        return [caption_to_json(record) for record in self.captions]

    def by_frame(self, frame_count: int) -> list[dict[str, Any] | None]:
        """Lists COCO run lengths by frame; None where the object isn't visible."""
        masks: list[dict[str, Any] | None] = [None] * frame_count
        for frame, label in self.masks.items():
            masks[frame] = coco_rle(label.rle)
        return masks


def by_track(
    video: VideoRecord, frames: Collection[int] | None = None
) -> list[TrackMasks]:
    """Returns a video's masks track by track.

    Formats that go by track need all masks of one video at once; encoded, a mask is a
    few hundred bytes.

    Args:
        video: The video.
        frames: 0-based frames to read; None means all.
    """
    tracks: dict[int, TrackMasks] = {}
    for frame, labels in video.masks(frames):
        for index, label in labels.items():
            if index not in tracks:
                captions = video.captions.get(index, ())
                tracks[index] = TrackMasks(index, video.label(index), {}, captions)
            tracks[index].label = tracks[index].label or label.label
            tracks[index].masks[frame] = label
    return [track for _, track in sorted(tracks.items())]


@dataclass(frozen=True)
class Captioned:
    """A caption with masks of its object.

    Attributes:
        record: The caption.
        label: Name of the object, when it is known.
        masks: Encoded masks by 0-based frame, ascending; at least one, all inside the
            caption's window.
    """

    record: CaptionRecord
    label: str | None
    masks: dict[int, EncodedLabel]

    @property
    def best(self) -> tuple[int, EncodedLabel]:
        """The frame where the object is largest, and its mask there."""
        return max(self.masks.items(), key=lambda item: item[1].area)


def captioned(video: VideoRecord, count: int | None) -> Iterator[Captioned]:
    """Iterates over a video's captions with some of their masks, by object and time.

    Args:
        video: The video.
        count: Number of masks of each, evenly over where the object is visible; None
            for all.
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


def on_best_frames(video: VideoRecord) -> list[tuple[int, list[Captioned]]]:
    """Groups a video's captions by the frame where their objects are largest."""
    frames: dict[int, list[Captioned]] = {}
    for item in captioned(video, None):
        frame, label = item.best
        shown = Captioned(item.record, item.label, {frame: label})
        frames.setdefault(frame, []).append(shown)
    return sorted(frames.items())


def coco_rle(rle: RLE) -> dict[str, Any]:
    """Converts run lengths to COCO's JSON."""
    return {"size": list(rle.size), "counts": rle.counts.decode("ascii")}


def coco_box(label: EncodedLabel) -> list[float]:
    """Returns a box as COCO has it: left, top, width and height in pixels."""
    x1, y1, x2, y2 = label.box
    return [x1, y1, x2 - x1, y2 - y1]


def coco_region(label: EncodedLabel) -> dict[str, Any]:
    """Returns the keys of a COCO annotation that say where an object is."""
    return {
        "bbox": coco_box(label),
        "area": label.area,
        "iscrowd": 0,
        "segmentation": coco_rle(label.rle),
    }


def write_coco(
    merge: Merge, file: str, description: str, **lists: Iterable[bytes]
) -> None:
    """Writes a COCO file, with a category for each name of an object.

    Args:
        merge: The videos of the export.
        file: Name of the file.
        description: Description of its content.
        **lists: Encoded items by key.
    """
    categories = (
        dumps({"id": number, "name": label, "supercategory": "object"})
        for label, number in merge.categories.items()
    )
    info = {"info": {"description": description}}
    write_object(merge.folder / file, info, **lists, categories=categories)
