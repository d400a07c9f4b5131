"""YouTube-VIS: one annotation a track, with a mask or null for every frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.base import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.captions import caption_from_json, caption_to_json
from fiftyone_regioncap.exporters.files import coco_rle, dumps, write_object
from fiftyone_regioncap.exporters.gathering import NO_LABEL, TrackMasks, by_track
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import (
    checked_rle,
    entries,
    integer,
    main_file,
    read_json,
)
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part, with_values

FILE = "instances.json"


@dataclass(frozen=True)
class YouTubeVis:
    """Writes ``instances.json`` and ``JPEGImages/<video>/<frame>.jpg``.

    Frames count from 0. Captions are extra keys: ``caption``, all of a track's captions
    joined, and ``captions``, one by one.

    Attributes:
        name: as it is asked for.
    """

    name: str = "youtube-vis"

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's frames and tracks."""
        paths = [f"{video.name}/{frame:05d}.jpg" for frame in range(video.frame_count)]
        part.add(
            "videos",
            {
                "width": video.width,
                "height": video.height,
                "length": video.frame_count,
                "file_names": paths,
            },
        )
        for track in by_track(video):
            label = video.label(track.index) or track.label or NO_LABEL
            captions = video.captions.get(track.index, ())
            item = {
                "iscrowd": 0,
                "width": video.width,
                "height": video.height,
                "length": video.frame_count,
                **_segmentations(track, video.frame_count),
                "track_id": track.index,
                "caption": " ".join(record.caption for record in captions) or None,
                "captions": [caption_to_json(record) for record in captions],
            }
            part.add("annotations", item, label)
            part.labels.add(label)
            part.counts.update(tracks=1, masks=len(track.masks))
        part.counts["frames"] += video.frame_count
        files = ((frame, f"JPEGImages/{path}") for frame, path in enumerate(paths))
        media.frames(video, part.folder, files)

    def finish(self, merge: Merge) -> None:
        """Writes ``instances.json``."""
        categories = {label: number for number, label in enumerate(merge.labels, 1)}
        write_object(
            merge.folder / FILE,
            {"info": {"description": "captioned tracks"}},
            videos=merge.numbered("videos"),
            annotations=_annotations(merge, categories),
            categories=(
                dumps({"id": number, "name": label, "supercategory": "object"})
                for label, number in categories.items()
            ),
        )


def _segmentations(track: TrackMasks, length: int) -> dict[str, list[Any]]:
    segmentations: list[dict[str, Any] | None] = [None] * length
    areas: list[int | None] = [None] * length
    boxes: list[list[float] | None] = [None] * length
    for frame, label in track.masks.items():
        x1, y1, x2, y2 = label.box
        segmentations[frame] = coco_rle(label.rle)
        areas[frame] = label.area
        boxes[frame] = [x1, y1, x2 - x1, y2 - y1]
    return {"segmentations": segmentations, "areas": areas, "bboxes": boxes}


def _annotations(merge: Merge, categories: dict[str, int]) -> Iterator[bytes]:
    for number, item in enumerate(merge.items("annotations", references=1), 1):
        yield with_values(
            item.body,
            id=number,
            video_id=item.part + 1,
            category_id=categories[item.references[0]],
        )


def read_youtube_vis(path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads YouTube-VIS back.

    Object ids are the annotations' ``track_id``; in files of other tools their ``id``.
    A single ``caption`` of another tool is about all frames of its track.

    Args:
        path: of the folder or the file.

    Raises:
        ExportError: when there is no such file.
    """
    value = read_json(main_file(path, FILE), dict)
    names = {entry["id"]: entry.get("name") for entry in value.get("categories", [])}
    annotations: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in entries(value, "annotations"):
        annotations.setdefault(annotation.get("video_id"), []).append(annotation)
    for video in entries(value, "videos"):
        name = _video_name(video)
        try:
            yield _read_video(name, video, annotations.get(video["id"], []), names)
        except (ExportError, KeyError, TypeError) as error:
            yield BrokenVideo(name, str(error))


def _video_name(video: Mapping[str, Any]) -> str:
    files = video.get("file_names") or ["?"]
    return str(files[0]).rpartition("/")[0] or str(video.get("id"))


def _read_video(
    name: str,
    video: Mapping[str, Any],
    annotations: Iterable[Mapping[str, Any]],
    names: Mapping[Any, str],
) -> ImportedVideo:
    size = (integer(video["height"], "height"), integer(video["width"], "width"))
    masks: dict[int, dict[int, RLE]] = {}
    labels: dict[int, str] = {}
    captions: list[CaptionRecord] = []
    for annotation in annotations:
        index = integer(annotation.get("track_id", annotation["id"]), "track_id")
        label = names.get(annotation.get("category_id"))
        if label and label != NO_LABEL:
            labels[index] = label
        own = [
            (frame, checked_rle(mask, size))
            for frame, mask in enumerate(annotation["segmentations"])
            if mask is not None
        ]
        for frame, mask in own:
            masks.setdefault(frame, {})[index] = mask
        if "captions" in annotation:
            captions += [
                caption_from_json(caption, index=index)
                for caption in annotation["captions"]
            ]
        elif annotation.get("caption") and own:
            support = (own[0][0], own[-1][0])
            text = str(annotation["caption"])
            captions.append(CaptionRecord(index, support, label, text))
    return ImportedVideo(
        name=name,
        masks=masks,
        labels=labels,
        captions=captions,
        size=size,
        frame_count=integer(video["length"], "length") if "length" in video else None,
    )
