"""Writes MeViS and Ref-YouTube-VOS: expressions about objects of videos."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.base import Format, ImportableFormat
from fiftyone_regioncap.exporters.captions import caption_to_json
from fiftyone_regioncap.exporters.conversations import RECORD
from fiftyone_regioncap.exporters.files import dumps, write_mapping
from fiftyone_regioncap.exporters.gathering import by_track
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import (
    BrokenVideo,
    Entry,
    ImportedVideo,
    find_file,
    integer,
    read_document,
    read_videos,
)
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part

EXPRESSIONS = "meta_expressions.json"
MASKS = "mask_dict.json"
META = "meta.json"

_COLORS = 255  # of a palette, beside the background


@dataclass(frozen=True)
class MeViS(ImportableFormat):
    """Writes ``meta_expressions.json``, ``mask_dict.json`` and ``JPEGImages/``.

    A caption is an expression of one object. MeViS' own loader passes over videos of
    fewer than two frames, and reads expressions in small letters.
    """

    summary: ClassVar[str] = "MeViS expressions with masks"

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's frames, masks and expressions."""
        expressions = []
        for track in by_track(video):
            number = part.add("masks", track.by_frame(video.frame_count))
            part.counts.update(tracks=1, masks=len(track.masks))
            for record in track.captions:
                objects = {"obj_id": [track.index], "anno_id": [number]}
                expressions.append((record, objects, track.label))
        _write_video(video, part, media, expressions)

    def finish(self, merge: Merge) -> None:
        """Writes both JSON files."""
        masks = enumerate(merge.bodies("masks"))
        write_mapping(merge.folder / MASKS, ((str(n), body) for n, body in masks))
        offsets = merge.offsets("masks")

        def numbered() -> Iterator[tuple[str, bytes]]:
            for item in merge.items("videos", references=1):
                entry = json.loads(item.body)
                for expression in entry["expressions"].values():
                    expression["anno_id"][0] += offsets[item.part]
                yield item.references[0], dumps(entry)

        write_mapping(merge.folder / EXPRESSIONS, numbered(), key="videos")

    @classmethod
    def read(cls, path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
        """Reads MeViS.

        In files of other tools an expression of several objects becomes a caption of
        each, about all frames where the object is visible.
        """
        file = find_file(path, EXPRESSIONS)
        document = read_document(file)
        document.require("videos")
        masks = read_document(find_file(file.parent, MASKS))
        return read_videos(
            document.mapping("videos").items(),
            lambda name, entry: _read_video(name, Entry(entry, name), masks),
        )


@dataclass(frozen=True)
class RefYouTubeVos(Format):
    """Writes both ``meta`` files, ``JPEGImages/`` and ``Annotations/``.

    Masks are PNG with a palette, so that of objects that overlap the one with the
    larger id is visible.
    """

    summary: ClassVar[str] = "Ref-YouTube-VOS expressions with palette masks"

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's frames, masks and expressions."""
        tracks = by_track(video)
        if len(tracks) > _COLORS:
            raise ExportError(
                f"{video.path.name} has more than {_COLORS} objects, which don't fit "
                "into a palette; choose mevis"
            )
        folder = part.folder / "Annotations" / video.name
        folder.mkdir(parents=True)
        appearance = sorted(tracks, key=lambda track: (min(track.masks), track.index))
        numbers = {track.index: n for n, track in enumerate(appearance, 1)}
        for frame in range(video.frame_count):
            picture = np.zeros((video.height, video.width), dtype=np.uint8)
            for track in tracks:
                if frame in track.masks:
                    picture[track.masks[frame].rle.decode()] = numbers[track.index]
            image = Image.fromarray(picture, mode="P")
            image.putpalette(_PALETTE)
            image.save(folder / f"{frame:05d}.png")
        objects = {
            str(numbers[track.index]): {
                "category": track.category,
                "frames": [f"{frame:05d}" for frame in track.masks],
            }
            for track in appearance
        }
        part.add("meta", {"objects": objects}, video.name)
        part.counts["tracks"] += len(tracks)
        part.counts["masks"] += sum(len(track.masks) for track in tracks)
        expressions = [
            (record, {"obj_id": str(numbers[track.index])}, track.label)
            for track in appearance
            for record in track.captions
        ]
        _write_video(video, part, media, expressions)

    def finish(self, merge: Merge) -> None:
        """Writes ``meta_expressions.json`` and ``meta.json``."""
        for file, stream in ((EXPRESSIONS, "videos"), (META, "meta")):
            items = merge.items(stream, references=1)
            entries = ((item.references[0], item.body) for item in items)
            write_mapping(merge.folder / file, entries, key="videos")


def _write_video(
    video: VideoRecord,
    part: Part,
    media: Media,
    expressions: Sequence[tuple[CaptionRecord, dict[str, Any], str | None]],
) -> None:
    """Writes a video's frames and its entry, whose expressions count from 0."""
    names = [f"{frame:05d}" for frame in range(video.frame_count)]
    entry = {
        "frames": names,
        "height": video.height,
        "width": video.width,
        "expressions": {
            str(number): {
                "exp": record.caption,
                **objects,
                RECORD: {**caption_to_json(record), "label": label},
            }
            for number, (record, objects, label) in enumerate(expressions)
        },
    }
    part.add("videos", entry, video.name)
    part.counts.update(captions=len(expressions), frames=len(names))
    paths = ((n, f"JPEGImages/{video.name}/{name}.jpg") for n, name in enumerate(names))
    media.frames(video, part.folder, paths)


def _palette() -> list[int]:
    """Makes PASCAL VOC's colors: bits of the number, spread over three channels."""
    colors = []
    for number in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
        colors += channels
    return colors


_PALETTE = _palette()


def _read_video(name: str, entry: Entry, mask_dict: Entry) -> ImportedVideo:
    found = ImportedVideo(name, frame_count=len(entry.items("frames")))
    seen: set[int] = set()
    for key, value in entry.mapping("expressions").items():
        expression = Entry(value, f"expression {key} of {name}")
        objects, annotations = expression.items("obj_id"), expression.items("anno_id")
        if len(objects) != len(annotations):
            raise ExportError(
                f"{expression.what} has {len(objects)} objects and {len(annotations)} "
                "annotations"
            )
        for object_id, annotation in zip(objects, annotations, strict=True):
            index = integer(object_id, f"'obj_id' of {expression.what}")
            if index not in seen:
                seen.add(index)
                mask_dict.require(str(annotation))
                for frame, mask in enumerate(mask_dict.items(str(annotation))):
                    found.add_mask(frame, index, mask)
            said = expression.text("exp")
            if isinstance(known := expression.get(RECORD), Mapping):
                found.add_caption({**known, "caption": said}, index=index)
            elif any(index in masks for masks in found.masks.values()):
                found.add_text(index, said)
    return found
