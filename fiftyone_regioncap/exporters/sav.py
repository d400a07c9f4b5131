"""Writes SA-V: masklets frame by frame, one file a video (Ravi et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.exporters.base import ImportableFormat
from fiftyone_regioncap.exporters.files import dumps
from fiftyone_regioncap.exporters.gathering import TrackMasks, by_track, coco_rle
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import (
    BrokenVideo,
    Entry,
    ImportedVideo,
    array,
    integer,
    read_document,
    read_videos,
)
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Part

STRIDE = 4
"""SA-V's videos have 24 frames a second, of which 6 are annotated."""

_SUFFIXES = ("_manual.json", "_auto.json")


@dataclass(frozen=True)
class SaV(ImportableFormat):
    """Writes ``<video>.mp4`` and ``<video>_manual.json`` or ``<video>_auto.json``.

    Extra keys: ``masklet_label`` and ``masklet_captions``, parallel to ``masklet_id``,
    and ``annotation_stride``.
    """

    summary: ClassVar[str] = "SA-V masklets"

    stride: int = option(
        STRIDE,
        "Annotate one in so many frames; 1 keeps all masks.",
        unit="frames",
        minimum=1,
    )
    masklet_type: Literal["manual", "auto"] = option(
        "manual", "Type of the masklets, which is also part of the file's name."
    )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video and its masklets."""
        self.write_masklets(video, part, media)

    def write_masklets(
        self, video: VideoRecord, part: Part, media: Media
    ) -> list[TrackMasks]:
        """Writes a video and its masklets, and returns them.

        SA-V says of each masklet on which annotated frame it appears first; objects
        that none shows are left out, with a note.
        """
        media.video(video, part.folder, where="")
        frames = range(0, video.frame_count, self.stride)
        tracks = by_track(video, None if self.stride == 1 else frames)
        path = part.folder / f"{video.name}_{self.masklet_type}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dumps(self._document(video, tracks, frames)) + b"\n")
        part.counts.update(
            tracks=len(tracks),
            masks=sum(len(track.masks) for track in tracks),
            captions=sum(len(track.captions) for track in tracks),
        )
        if hidden := video.others([track.index for track in tracks]):
            part.notes.append(
                f"{video.name}: left out objects {', '.join(map(str, hidden))}, which "
                f"no annotated frame shows (one in {self.stride}); export with a "
                "smaller stride"
            )
        return tracks

    def _document(
        self, video: VideoRecord, tracks: list[TrackMasks], frames: range
    ) -> dict[str, Any]:
        pixels = video.height * video.width
        nothing = coco_rle(RLE.encode(np.zeros((video.height, video.width), bool)))
        areas = [
            float(np.mean([label.area for label in track.masks.values()]))
            for track in tracks
        ]
        return {
            "video_id": video.name,
            "video_duration": video.timeline.at(video.frame_count)
            - video.timeline.at(0),
            "video_frame_count": float(video.frame_count),
            "video_height": float(video.height),
            "video_width": float(video.width),
            "video_resolution": float(pixels),
            "video_environment": "",  # SA-V says Indoor or Outdoor
            "video_split": video.job.split or "train",
            "masklet": [
                [
                    coco_rle(track.masks[frame].rle)
                    if frame in track.masks
                    else nothing
                    for track in tracks
                ]
                for frame in frames
            ],
            "masklet_id": [track.index for track in tracks],
            "masklet_size_rel": [area / pixels for area in areas],
            "masklet_size_abs": areas,
            "masklet_size_bucket": [_bucket(area) for area in areas],
            "masklet_visibility_changes": [_changes(track, frames) for track in tracks],
            "masklet_first_appeared_frame": [  # counts the annotated frames
                float(min(track.masks) // self.stride) for track in tracks
            ],
            "masklet_frame_count": [len(frames)] * len(tracks),
            "masklet_edited_frame_count": [0] * len(tracks),
            "masklet_type": [self.masklet_type] * len(tracks),
            "masklet_stability_score": None,
            "masklet_num": len(tracks),
            "masklet_label": [track.label for track in tracks],
            "masklet_captions": [track.captions_json for track in tracks],
            "annotation_stride": self.stride,
        }

    @classmethod
    def read(cls, path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
        """Reads SA-V: all masklets of a video, manual and automatic.

        Both kinds count from 0. Where a video has both, the automatic ones are numbered
        on from the manual ones.
        """
        files: dict[str, list[Path]] = {}
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            if not path.is_dir() or file.name.endswith(_SUFFIXES):
                name = str(file)
                for suffix in _SUFFIXES:
                    name = name.removesuffix(suffix)
                files.setdefault(name, []).append(file)
        if not files:
            raise ExportError(
                f"there is no *_manual.json or *_auto.json in {path}; give a folder of "
                "SA-V"
            )
        videos = ((Path(name).name, own) for name, own in files.items())
        return read_videos(videos, _read_video)


def _bucket(area: float) -> str:
    if area < 32**2:
        return "small"
    return "medium" if area < 96**2 else "large"


def _changes(track: TrackMasks, frames: range) -> int:
    """Counts how often the object appears and disappears after its first frame."""
    visible = [frame in track.masks for frame in frames]
    visible = visible[visible.index(True) :]
    return sum(a != b for a, b in pairwise(visible))


def _read_video(name: str, files: list[Path]) -> ImportedVideo:
    found: ImportedVideo | None = None
    for file in reversed(files):  # _manual before _auto
        document = read_document(file)
        size = document.size("video_height", "video_width")
        count = document.integer("video_frame_count")
        first = 0
        if found is None:
            found = ImportedVideo(document.text("video_id"), size, count)
        else:
            known = {index for masks in found.masks.values() for index in masks}
            first = 1 + max(known | set(found.labels), default=-1)
        _read_masklets(document, found, first)
    assert found is not None
    return found


def _read_masklets(document: Entry, found: ImportedVideo, first: int) -> None:
    document.require("masklet")
    ids = [first + integer(i, "masklet_id") for i in document.items("masklet_id")]
    stride = document.optional("annotation_stride", integer) or STRIDE
    for number, value in enumerate(document.items("masklet")):
        masks = array(value, f"number {number} of 'masklet'")
        if len(masks) != len(ids):
            raise ExportError(
                f"number {number} of 'masklet' has {len(masks)} masks, 'masklet_id' "
                f"{len(ids)} ids"
            )
        for index, mask in zip(ids, masks, strict=True):
            found.add_mask(number * stride, index, mask)
    for index, label in zip(ids, document.items("masklet_label"), strict=False):
        found.add_label(index, label)
    for index, captions in zip(ids, document.items("masklet_captions"), strict=False):
        for caption in array(captions, f"the captions of masklet {index}"):
            found.add_caption(caption, index=index)
