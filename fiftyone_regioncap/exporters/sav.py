"""SA-V: masklets frame by frame, one file a video (Ravi et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.base import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.captions import caption_from_json, caption_to_json
from fiftyone_regioncap.exporters.files import coco_rle, dumps
from fiftyone_regioncap.exporters.gathering import TrackMasks, by_track
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import checked_rle, integer, read_json
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part

STRIDE = 4
"""SA-V's videos have 24 frames a second, of which 6 are annotated."""

_SUFFIXES = ("_manual.json", "_auto.json")


@dataclass(frozen=True)
class SaV:
    """Writes ``<video>.mp4`` and ``<video>_manual.json`` or ``<video>_auto.json``.

    Extra keys: ``masklet_label`` and ``masklet_captions``, parallel to ``masklet_id``,
    and ``annotation_stride``.

    Attributes:
        name: as it is asked for.
        stride: every how many frames are annotated; 1 keeps all masks.
        masklet_type: ``"manual"`` or ``"auto"``, which is also part of the file's name.
    """

    name: str = "sa-v"
    stride: int = STRIDE
    masklet_type: str = "manual"

    def __post_init__(self) -> None:
        if self.stride < 1 or self.masklet_type not in ("manual", "auto"):
            raise ExportError(
                "sa-v takes a stride from 1 and the masklet_type manual or auto, not "
                f"{self.stride} and {self.masklet_type!r}"
            )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video and its masklets."""
        media.video(video, part.folder, where="")
        frames = range(0, video.frame_count, self.stride)
        tracks = by_track(video, None if self.stride == 1 else frames)
        path = part.folder / f"{video.name}_{self.masklet_type}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dumps(self._document(video, tracks, frames)) + b"\n")
        part.counts.update(
            tracks=len(tracks),
            masks=sum(len(track.masks) for track in tracks),
            captions=sum(len(video.captions.get(t.index, ())) for t in tracks),
        )

    def finish(self, merge: Merge) -> None:
        """Does nothing: every video has its own file."""

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
            "video_duration": video.frame_count / video.fps if video.fps else 0.0,
            "video_frame_count": float(video.frame_count),
            "video_height": float(video.height),
            "video_width": float(video.width),
            "video_resolution": float(pixels),
            "video_environment": [],
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
            "masklet_first_appeared_frame": [min(track.masks) for track in tracks],
            "masklet_frame_count": [len(frames)] * len(tracks),
            "masklet_edited_frame_count": [0] * len(tracks),
            "masklet_type": [self.masklet_type] * len(tracks),
            "masklet_stability_score": None,
            "masklet_num": len(tracks),
            "masklet_label": [video.label(t.index) or t.label for t in tracks],
            "masklet_captions": [
                [caption_to_json(record) for record in video.captions.get(t.index, ())]
                for t in tracks
            ],
            "annotation_stride": self.stride,
        }


def _bucket(area: float) -> str:
    if area < 32**2:
        return "small"
    return "medium" if area < 96**2 else "large"


def _changes(track: TrackMasks, frames: range) -> int:
    """How often the object comes and goes after it first appeared."""
    visible = [frame in track.masks for frame in frames]
    visible = visible[visible.index(True) :]
    return sum(a != b for a, b in pairwise(visible))


def read_sav(path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads SA-V back, file by file; manual and automatic masklets of a video alike.

    Args:
        path: of the folder or of one file.

    Raises:
        ExportError: when there is no such file.
    """
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*.json") if f.name.endswith(_SUFFIXES))
    if not files:
        raise ExportError(
            f"there is no *_manual.json or *_auto.json in {path}; give a folder of SA-V"
        )
    for file in files:
        try:
            yield _read_video(read_json(file, dict))
        except (ExportError, KeyError, TypeError, IndexError) as error:
            yield BrokenVideo(file.name, f"{error}")


def _read_video(value: Mapping[str, Any]) -> ImportedVideo:
    size = (
        integer(value["video_height"], "video_height"),
        integer(value["video_width"], "video_width"),
    )
    ids = [integer(index, "masklet_id") for index in value["masklet_id"]]
    stride = integer(value.get("annotation_stride", STRIDE), "annotation_stride")
    masks: dict[int, dict[int, RLE]] = {}
    for number, objects in enumerate(value["masklet"]):
        for index, found in zip(ids, objects, strict=True):
            mask = checked_rle(found, size)
            if mask.area():
                masks.setdefault(number * stride, {})[index] = mask
    names = value.get("masklet_label") or [None] * len(ids)
    captions: list[CaptionRecord] = []
    for index, own in zip(ids, value.get("masklet_captions") or (), strict=False):
        captions += [caption_from_json(caption, index=index) for caption in own]
    return ImportedVideo(
        name=str(value["video_id"]),
        masks=masks,
        labels={i: str(label) for i, label in zip(ids, names, strict=True) if label},
        captions=captions,
        size=size,
        frame_count=integer(value["video_frame_count"], "video_frame_count"),
    )
