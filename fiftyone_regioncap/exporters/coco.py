"""COCO per frame: each frame is an image, with track ids and captions (TAO's layout).

``annotations.json`` holds ``videos``, ``tracks``, ``images``, ``annotations`` and
``categories``. pycocotools and all that builds on it read it; what they don't know are
extra keys. Frames count from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.dataset.encoded import EncodedLabel
from fiftyone_regioncap.exporters.base import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.captions import caption_from_json, caption_to_json
from fiftyone_regioncap.exporters.files import coco_rle, dumps, write_object
from fiftyone_regioncap.exporters.gathering import NO_LABEL, shown
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

FILE = "annotations.json"


@dataclass(frozen=True)
class Coco:
    """Writes COCO per frame, with the frames as JPEG.

    Attributes:
        name: as it is asked for.
    """

    name: str = "coco"

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's frames and annotations."""
        part.add(
            "videos",
            {
                "name": video.name,
                "file_name": video.path.name,
                "height": video.height,
                "width": video.width,
                "length": video.frame_count,
                "fps": video.fps,
            },
        )
        images: dict[int, str] = {}
        objects: dict[int, str] = {}
        for frame, labels in video.masks():
            images[frame] = f"frames/{video.name}/{frame:06d}.jpg"
            image = {
                "file_name": images[frame],
                "height": video.height,
                "width": video.width,
                "frame_id": frame,
            }
            part.add("images", image)
            for index, label in labels.items():
                category = objects.setdefault(
                    index, video.label(index) or label.label or NO_LABEL
                )
                part.add(
                    "annotations",
                    _annotation(label, shown(video, index, frame)),
                    len(images) - 1,
                    list(objects).index(index),
                    category,
                )
                part.counts["masks"] += 1
        for index, category in objects.items():
            captions = video.captions.get(index, ())
            track = {
                "object_id": index,
                "captions": [caption_to_json(record) for record in captions],
            }
            part.add("tracks", track, category)
        part.labels.update(objects.values())
        part.counts.update(frames=len(images), tracks=len(objects))
        media.frames(video, part.folder, images.items())

    def finish(self, merge: Merge) -> None:
        """Writes ``annotations.json``."""
        categories = {label: number for number, label in enumerate(merge.labels, 1)}
        write_object(
            merge.folder / FILE,
            {"info": {"description": "captioned tracks, frame by frame"}},
            videos=merge.numbered("videos"),
            tracks=_tracks(merge, categories),
            images=_images(merge),
            annotations=_annotations(merge, categories),
            categories=(
                dumps({"id": number, "name": label, "supercategory": "object"})
                for label, number in categories.items()
            ),
        )


def _annotation(label: EncodedLabel, caption: CaptionRecord | None) -> dict[str, Any]:
    x1, y1, x2, y2 = label.box
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": label.area,
        "iscrowd": 0,
        "score": label.score,
        "segmentation": coco_rle(label.rle),
        "caption": None if caption is None else caption.caption,
    }


def _tracks(merge: Merge, categories: dict[str, int]) -> Iterator[bytes]:
    for number, item in enumerate(merge.items("tracks", references=1), 1):
        yield with_values(
            item.body,
            id=number,
            video_id=item.part + 1,
            category_id=categories[item.references[0]],
        )


def _images(merge: Merge) -> Iterator[bytes]:
    for number, item in enumerate(merge.items("images"), 1):
        yield with_values(item.body, id=number, video_id=item.part + 1)


def _annotations(merge: Merge, categories: dict[str, int]) -> Iterator[bytes]:
    """Numbers images and tracks on, past those of the videos before."""
    part = images = tracks = 0
    most_images = most_tracks = 0
    for number, item in enumerate(merge.items("annotations", references=3), 1):
        if item.part != part:
            images, tracks, part = most_images, most_tracks, item.part
        image, track, category = item.references
        most_images = max(most_images, images + image + 1)
        most_tracks = max(most_tracks, tracks + track + 1)
        yield with_values(
            item.body,
            id=number,
            image_id=images + image + 1,
            track_id=tracks + track + 1,
            video_id=item.part + 1,
            category_id=categories[category],
        )


def read_coco(path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads COCO per frame back.

    Object ids are the tracks' ``object_id``; in files of other tools the ``track_id``.

    Args:
        path: of the folder or the file.

    Raises:
        ExportError: when there is no such file.
    """
    value = read_json(main_file(path, FILE), dict)
    names = {entry["id"]: entry.get("name") for entry in value.get("categories", [])}
    tracks = {entry.get("id"): entry for entry in value.get("tracks", [])}
    images: dict[Any, dict[Any, Mapping[str, Any]]] = {}
    for image in entries(value, "images"):
        images.setdefault(image.get("video_id"), {})[image.get("id")] = image
    owners = {key: video for video, own in images.items() for key in own}
    annotations: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in entries(value, "annotations"):
        owner = owners.get(annotation.get("image_id"))
        annotations.setdefault(owner, []).append(annotation)
    for video in entries(value, "videos"):
        name = str(video.get("file_name") or video.get("name"))
        key = video.get("id")
        try:
            yield _read_video(
                video,
                images.get(key, {}),
                annotations.get(key, []),
                {i: track for i, track in tracks.items() if track["video_id"] == key},
                names,
            )
        except (ExportError, KeyError, TypeError) as error:
            yield BrokenVideo(name, str(error))


def _read_video(
    video: Mapping[str, Any],
    images: Mapping[Any, Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    tracks: Mapping[Any, Mapping[str, Any]],
    names: Mapping[Any, str],
) -> ImportedVideo:
    size = (integer(video["height"], "height"), integer(video["width"], "width"))
    masks: dict[int, dict[int, RLE]] = {}
    scores: dict[tuple[int, int], float] = {}
    labels: dict[int, str] = {}
    for annotation in annotations:
        frame = integer(images[annotation["image_id"]]["frame_id"], "frame_id")
        track = tracks.get(annotation["track_id"], {})
        index = integer(track.get("object_id", annotation["track_id"]), "track_id")
        masks.setdefault(frame, {})[index] = checked_rle(
            annotation["segmentation"], size
        )
        if annotation.get("score") is not None:
            scores[frame, index] = float(annotation["score"])
        label = names.get(annotation.get("category_id"))
        if label and label != NO_LABEL:
            labels[index] = label
    return ImportedVideo(
        name=str(video["name"]),
        masks=masks,
        labels=labels,
        captions=[
            caption_from_json(caption, index=integer(track["object_id"], "object_id"))
            for track in tracks.values()
            for caption in track.get("captions", ())
        ],
        size=size,
        frame_count=integer(video["length"], "length") if "length" in video else None,
        scores=scores,
    )
