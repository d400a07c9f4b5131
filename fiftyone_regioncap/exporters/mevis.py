"""MeViS and Ref-YouTube-VOS: expressions about objects of videos."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.base import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.captions import caption_from_json, caption_to_json
from fiftyone_regioncap.exporters.files import coco_rle, dumps, write_mapping
from fiftyone_regioncap.exporters.gathering import TrackMasks, by_track
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import (
    checked_rle,
    integer,
    main_file,
    read_json,
)
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part
from fiftyone_regioncap.exporters.videorefer import RECORD

EXPRESSIONS = "meta_expressions.json"
MASKS = "mask_dict.json"

_COLORS = 255  # of a palette, beside the background


@dataclass(frozen=True)
class MeViS:
    """Writes ``meta_expressions.json``, ``mask_dict.json`` and ``JPEGImages/``.

    A caption is an expression of one object. MeViS' own loader passes over videos of
    fewer than two frames, and reads expressions in small letters.

    Attributes:
        name: as it is asked for.
    """

    name: str = "mevis"

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's frames, masks and expressions."""
        tracks = by_track(video)
        for track in tracks:
            masks: list[dict[str, Any] | None] = [None] * video.frame_count
            for frame, label in track.masks.items():
                masks[frame] = coco_rle(label.rle)
            part.add("masks", masks)
            part.counts.update(tracks=1, masks=len(track.masks))
        entry = _entry(
            video,
            [
                (
                    {"exp": record.caption, "obj_id": [track.index]},
                    number,
                    record,
                    track,
                )
                for number, track in enumerate(tracks)
                for record in video.captions.get(track.index, ())
            ],
        )
        part.add("videos", entry, video.name, len(tracks))
        part.counts["captions"] += len(entry["expressions"])
        _frames(video, part, media)

    def finish(self, merge: Merge) -> None:
        """Writes both JSON files."""
        masks = enumerate(merge.bodies("masks"))
        write_mapping(merge.folder / MASKS, ((str(n), body) for n, body in masks))
        write_mapping(merge.folder / EXPRESSIONS, _numbered(merge), key="videos")


@dataclass(frozen=True)
class RefYouTubeVos:
    """Writes ``meta_expressions.json``, ``JPEGImages/`` and ``Annotations/``.

    Masks are PNG with a palette, so that of objects that overlap the one with the
    larger id is seen.

    Attributes:
        name: as it is asked for.
    """

    name: str = "ref-youtube-vos"

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's frames, masks and expressions."""
        colors: dict[int, int] = {}
        labels: dict[int, str | None] = {}
        folder = part.folder / "Annotations" / video.name
        folder.mkdir(parents=True)
        done = set()
        for frame, objects in video.masks():
            picture = np.zeros((video.height, video.width), dtype=np.uint8)
            for index, label in sorted(objects.items()):
                number = colors.setdefault(index, len(colors) + 1)
                labels[index] = labels.get(index) or label.label
                if number > _COLORS:
                    raise ExportError(
                        f"{video.path.name} has more than {_COLORS} objects, which "
                        "don't fit into a palette; choose mevis"
                    )
                picture[label.rle.decode()] = number
                part.counts["masks"] += 1
            _save_palette(picture, folder / f"{frame:05d}.png")
            done.add(frame)
        nothing = np.zeros((video.height, video.width), dtype=np.uint8)
        for frame in set(range(video.frame_count)) - done:
            _save_palette(nothing, folder / f"{frame:05d}.png")
        entry = _entry(
            video,
            [
                (
                    {"exp": record.caption, "obj_id": str(number)},
                    0,
                    record,
                    TrackMasks(index, labels[index], {}),
                )
                for index, number in colors.items()
                for record in video.captions.get(index, ())
            ],
        )
        part.add("videos", entry, video.name, 0)
        part.counts.update(tracks=len(colors), captions=len(entry["expressions"]))
        _frames(video, part, media)

    def finish(self, merge: Merge) -> None:
        """Writes ``meta_expressions.json``."""
        write_mapping(merge.folder / EXPRESSIONS, _numbered(merge), key="videos")


def _entry(
    video: VideoRecord,
    expressions: list[tuple[dict[str, Any], int, CaptionRecord, TrackMasks]],
) -> dict[str, Any]:
    """A video's entry; ``anno_id`` still counts the masks of this video alone."""
    return {
        "frames": [f"{frame:05d}" for frame in range(video.frame_count)],
        "height": video.height,
        "width": video.width,
        "expressions": {
            str(number): {
                **expression,
                **(
                    {"anno_id": [mask]}
                    if isinstance(expression["obj_id"], list)
                    else {}
                ),
                RECORD: {
                    **caption_to_json(record),
                    "label": video.label(track.index) or track.label,
                },
            }
            for number, (expression, mask, record, track) in enumerate(expressions)
        },
    }


def _numbered(merge: Merge) -> Iterator[tuple[str, bytes]]:
    """Numbers masks on past those of the videos before."""
    before = 0
    for item in merge.items("videos", references=2):
        name, masks = item.references
        entry = json.loads(item.body)
        for expression in entry["expressions"].values():
            if "anno_id" in expression:
                expression["anno_id"] = [before + n for n in expression["anno_id"]]
        before += masks
        yield name, dumps(entry)


def _frames(video: VideoRecord, part: Part, media: Media) -> None:
    part.counts["frames"] += video.frame_count
    paths = (
        (frame, f"JPEGImages/{video.name}/{frame:05d}.jpg")
        for frame in range(video.frame_count)
    )
    media.frames(video, part.folder, paths)


def _save_palette(picture: np.ndarray, path: Path) -> None:
    image = Image.fromarray(picture, mode="P")
    image.putpalette(_PALETTE)
    image.save(path)


def _palette() -> list[int]:
    """PASCAL VOC's colors: bits of the number, spread over the three channels."""
    colors = []
    for number in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
        colors += channels
    return colors


_PALETTE = _palette()


def read_mevis(path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads MeViS back.

    In files of other tools an expression of several objects becomes a caption of each,
    about all frames where the object is seen.

    Args:
        path: of the folder, or of its ``meta_expressions.json``.

    Raises:
        ExportError: when there is no such file.
    """
    file = main_file(path, EXPRESSIONS)
    videos = read_json(file, dict).get("videos")
    masks = read_json(main_file(file.parent, MASKS), dict)
    if not isinstance(videos, dict):
        raise ExportError(f"{file} holds no videos")
    for name, entry in videos.items():
        try:
            yield _read_video(name, entry, masks)
        except (ExportError, KeyError, TypeError, AttributeError) as error:
            yield BrokenVideo(name, f"{error}")


def _read_video(
    name: str, entry: Mapping[str, Any], mask_dict: Mapping[str, Any]
) -> ImportedVideo:
    masks: dict[int, dict[int, RLE]] = {}
    labels: dict[int, str] = {}
    captions: dict[tuple[int, tuple[int, int]], CaptionRecord] = {}
    seen: dict[int, list[int]] = {}
    size = None
    for expression in entry["expressions"].values():
        known = expression.get(RECORD)
        for index, annotation in zip(
            expression["obj_id"], expression["anno_id"], strict=True
        ):
            index = integer(index, "obj_id")
            if index not in seen:
                own = [
                    (frame, checked_rle(mask, size))
                    for frame, mask in enumerate(mask_dict[str(annotation)])
                    if mask is not None
                ]
                seen[index] = [frame for frame, _ in own]
                for frame, mask in own:
                    masks.setdefault(frame, {})[index] = mask
                    size = mask.size
            text = str(expression["exp"])
            if known is not None:
                record = caption_from_json({**known, "caption": text}, index=index)
            elif seen[index]:
                support = (seen[index][0], seen[index][-1])
                record = CaptionRecord(index, support, caption=text)
                if record.key in captions:  # several expressions of one object
                    text = f"{captions[record.key].caption}\n{text}"
                    record = CaptionRecord(index, support, caption=text)
            else:
                continue
            captions[record.key] = record
            if record.label:
                labels[index] = record.label
    return ImportedVideo(
        name=name,
        masks=masks,
        labels=labels,
        captions=list(captions.values()),
        size=size,
        frame_count=len(entry["frames"]),
    )
