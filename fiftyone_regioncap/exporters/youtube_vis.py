"""Writes YouTube-VIS: one annotation a track, a mask or null for every frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fiftyone_regioncap.exporters.base import ImportableFormat
from fiftyone_regioncap.exporters.gathering import by_track, coco_box, write_coco
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import (
    BrokenVideo,
    Entry,
    ImportedVideo,
    category_names,
    find_file,
    grouped,
    integer,
    read_document,
    read_videos,
)
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part

FILE = "instances.json"


@dataclass(frozen=True)
class YouTubeVis(ImportableFormat):
    """Writes ``instances.json`` and ``JPEGImages/<video>/<frame>.jpg``.

    Frames count from 0. Captions are extra keys: ``caption``, all of a track's captions
    joined, and ``captions``, one by one.
    """

    summary: ClassVar[str] = (
        "YouTube-VIS: one annotation a track, captions as extra keys"
    )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's frames and tracks."""
        paths = [f"{video.name}/{frame:05d}.jpg" for frame in range(video.frame_count)]
        shape = {
            "width": video.width,
            "height": video.height,
            "length": video.frame_count,
        }
        part.add("videos", {**shape, "file_names": paths})
        for track in by_track(video):
            areas: list[int | None] = [None] * video.frame_count
            boxes: list[list[float] | None] = [None] * video.frame_count
            for frame, label in track.masks.items():
                areas[frame] = label.area
                boxes[frame] = coco_box(label)
            item = {
                "iscrowd": 0,
                **shape,
                "segmentations": track.by_frame(video.frame_count),
                "areas": areas,
                "bboxes": boxes,
                "track_id": track.index,
                "caption": " ".join(c.caption for c in track.captions) or None,
                "captions": track.captions_json,
            }
            part.add("annotations", item, 0, track.category)
            part.labels.add(track.category)
            part.counts.update(tracks=1, masks=len(track.masks))
        part.counts["frames"] += video.frame_count
        files = ((frame, f"JPEGImages/{path}") for frame, path in enumerate(paths))
        media.frames(video, part.folder, files)

    def finish(self, merge: Merge) -> None:
        """Writes ``instances.json``."""
        write_coco(
            merge,
            FILE,
            "captioned tracks",
            videos=merge.numbered("videos"),
            annotations=merge.numbered(
                "annotations", video_id="videos", category_id="labels"
            ),
        )

    @classmethod
    def read(cls, path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
        """Reads YouTube-VIS.

        Object ids are the annotations' ``track_id``; in files of other tools their
        ``id``. A single ``caption`` of another tool is about all frames of its track.
        """
        document = read_document(find_file(path, FILE))
        names = category_names(document)
        videos = document.entries("videos", "video")
        annotations, orphans = grouped(
            document.entries("annotations", "annotation"),
            "video_id",
            {video.key("id") for video in videos},
        )

        def read(name: str, video: Entry) -> ImportedVideo:
            own = annotations.get(video.key("id"), [])
            return _read_video(name, video, own, names)

        yield from read_videos(((_video_name(v), v) for v in videos), read)
        yield from orphans


def _video_name(video: Entry) -> str:
    files = video.get("file_names")
    first = files[0] if isinstance(files, list) and files else "?"
    return str(first).rpartition("/")[0] or str(video.get("id"))


def _read_video(
    name: str, video: Entry, annotations: list[Entry], names: dict[Any, Any]
) -> ImportedVideo:
    found = ImportedVideo(name, video.size(), video.optional("length", integer))
    for annotation in annotations:
        key = "id" if annotation.get("track_id") is None else "track_id"
        index = annotation.integer(key)
        found.add_label(index, names.get(annotation.key("category_id")))
        annotation.require("segmentations")
        masks = annotation.items("segmentations")
        if not any(masks) and any(annotation.items("bboxes")):
            raise ExportError(
                f"{annotation.what} has boxes and no masks; masks are imported, boxes "
                "are prompts to propagate from"
            )
        for frame, mask in enumerate(masks):
            found.add_mask(frame, index, mask)
        for caption in annotation.items("captions"):
            found.add_caption(caption, index=index)
        if annotation.get("captions") is None and annotation.get("caption"):
            found.add_text(index, annotation.get("caption"))
    return found
