"""Writes COCO per frame: images with track ids and captions (TAO's layout).

``annotations.json`` holds ``videos``, ``tracks``, ``images``, ``annotations`` and
``categories``. pycocotools and all that builds on it read it, and pass over extra keys.
Frames count from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fiftyone_regioncap.exporters.base import ImportableFormat
from fiftyone_regioncap.exporters.captions import caption_to_json
from fiftyone_regioncap.exporters.gathering import coco_region, write_coco
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import (
    NO_LABEL,
    BrokenVideo,
    Entry,
    ImportedVideo,
    category_names,
    find_file,
    grouped,
    integer,
    number,
    read_document,
    read_videos,
)
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part

FILE = "annotations.json"


@dataclass(frozen=True)
class Coco(ImportableFormat):
    """Writes ``annotations.json``, and the frames as JPEG."""

    summary: ClassVar[str] = (
        "COCO per frame with track ids and captions (pycocotools, TAO)"
    )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's frames and annotations."""
        size = {"height": video.height, "width": video.width}
        entry = {
            "name": video.name,
            "file_name": video.path.name,
            **size,
            "length": video.frame_count,
            "fps": video.fps,
        }
        part.add("videos", entry)
        paths: dict[int, str] = {}
        numbers: dict[int, int] = {}
        categories: dict[int, str] = {}
        for frame, labels in video.masks():
            paths[frame] = f"frames/{video.name}/{frame:06d}.jpg"
            image = {"file_name": paths[frame], **size, "frame_id": frame}
            image_number = part.add("images", image, 0)
            for index, label in labels.items():
                category = categories.setdefault(
                    index, video.label(index) or label.label or NO_LABEL
                )
                caption = video.caption_at(index, frame)
                annotation = {
                    **coco_region(label),
                    "score": label.score,
                    "caption": None if caption is None else caption.caption,
                }
                track = numbers.setdefault(index, len(numbers))
                part.add("annotations", annotation, image_number, track, 0, category)
                part.counts["masks"] += 1
        for index, category in categories.items():
            captions = [caption_to_json(c) for c in video.captions.get(index, ())]
            track_entry = {"object_id": index, "captions": captions}
            part.add("tracks", track_entry, 0, category)
        part.labels.update(categories.values())
        part.counts.update(frames=len(paths), tracks=len(categories))
        media.frames(video, part.folder, paths.items())

    def finish(self, merge: Merge) -> None:
        """Writes ``annotations.json``."""
        write_coco(
            merge,
            FILE,
            "captioned tracks, frame by frame",
            videos=merge.numbered("videos"),
            tracks=merge.numbered("tracks", video_id="videos", category_id="labels"),
            images=merge.numbered("images", video_id="videos"),
            annotations=merge.numbered(
                "annotations",
                image_id="images",
                track_id="tracks",
                video_id="videos",
                category_id="labels",
            ),
        )

    @classmethod
    def read(cls, path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
        """Reads COCO per frame, and TAO.

        Object ids are the tracks' ``object_id``; in files of other tools the
        ``track_id``.
        """
        document = read_document(find_file(path, FILE))
        names = category_names(document)
        videos = document.entries("videos", "video")
        ids = {video.key("id") for video in videos}
        images: dict[Any, Entry] = {}
        for image in document.entries("images", "image"):
            images[image.key("id")] = image
        annotations: dict[Any, list[Entry]] = {}
        for annotation in document.entries("annotations", "annotation"):
            image = images.get(annotation.key("image_id"), annotation)
            annotations.setdefault(image.key("video_id"), []).append(annotation)
        tracks, orphans = grouped(
            document.entries("tracks", "track", required=False), "video_id", ids
        )

        def read(name: str, video: Entry) -> ImportedVideo:
            key = video.key("id")
            own = {track.key("id"): track for track in tracks.get(key, ())}
            return _read_video(
                name, video, images, annotations.pop(key, []), own, names
            )

        yield from read_videos(((_name(video), video) for video in videos), read)
        yield from orphans
        for key, own in annotations.items():
            yield BrokenVideo(
                f"video_id {key}", f"{own[0].what} is of no video in the file"
            )


def _name(video: Entry) -> str:
    return str(video.get("name", video.get("file_name")))


def _read_video(
    name: str,
    video: Entry,
    images: Mapping[Any, Entry],
    annotations: list[Entry],
    tracks: Mapping[Any, Entry],
    names: Mapping[Any, Any],
) -> ImportedVideo:
    found = ImportedVideo(name, video.size(), video.optional("length", integer))
    for annotation in annotations:
        image = images.get(annotation.key("image_id"))
        if image is None:
            raise ExportError(f"{annotation.what} is of no image in the file")
        if annotation.get("segmentation") is None:
            raise ExportError(
                f"{annotation.what} has a box and no mask; masks are imported, boxes "
                "are prompts to propagate from"
            )
        # TAO annotates some frames: frame_index counts all, frame_id only those.
        key = "frame_id" if image.get("frame_index") is None else "frame_index"
        track = tracks.get(annotation.key("track_id"))
        index = annotation.integer("track_id")
        if track is not None and track.get("object_id") is not None:
            index = track.integer("object_id")
        found.add_mask(
            image.integer(key),
            index,
            annotation.get("segmentation"),
            annotation.optional("score", number),
        )
        found.add_label(index, names.get(annotation.key("category_id")))
    for track in tracks.values():
        for caption in track.items("captions"):
            found.add_caption(caption, index=track.integer("object_id"))
    return found
