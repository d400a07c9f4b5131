"""Writes tables: JSON lines with a track a line, and CSV with a caption a row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.base import Format, ImportableFormat
from fiftyone_regioncap.exporters.captions import caption_to_json
from fiftyone_regioncap.exporters.files import write_lines
from fiftyone_regioncap.exporters.gathering import TrackMasks, by_track, coco_rle
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import (
    BrokenVideo,
    Entry,
    ImportedVideo,
    find_file,
    integer,
    number,
    read_lines,
    read_videos,
)
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import Merge, Part

LINES_FILE = "tracks.jsonl"
CSV_FILE = "captions.csv"

COLUMNS = (
    "video",
    "index",
    "label",
    "first_frame",
    "last_frame",
    "start_seconds",
    "end_seconds",
    "caption",
    "confidence",
    "min_confidence",
    "agreement",
    "review",
    "source_caption",
    "tags",
    "attributes",
    "category",
    "model",
    "revision",
    "prompt",
    "visible_fraction",
    "mean_area",
    "speed",
    "direction",
    "dominant_color",
)
"""Columns of the CSV file. Frames count from 0 and are inclusive; words in lists are
separated by ``"; "``."""


@dataclass(frozen=True)
class JsonLines(ImportableFormat):
    """Writes ``tracks.jsonl``: one track a line, with all that is kept of it."""

    summary: ClassVar[str] = (
        "one track a line, with masks and all that is kept of its captions"
    )

    masks: bool = option(True, "Write the masks, as COCO run lengths by frame.")

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's tracks."""
        path = media.video(video, part.folder)
        tracks = by_track(video)
        for index in sorted(video.captions.keys() - {track.index for track in tracks}):
            captions = video.captions[index]
            tracks.append(TrackMasks(index, video.label(index), {}, captions))
        for track in tracks:
            line = {
                "video": path,
                "height": video.height,
                "width": video.width,
                "fps": video.fps,
                "frame_count": video.frame_count,
                "index": track.index,
                "label": track.label,
                "captions": track.captions_json,
            }
            if self.masks:
                masks = track.masks.items()
                line["masks"] = {str(f): coco_rle(label.rle) for f, label in masks}
                line["scores"] = {str(f): label.score for f, label in masks}
                part.counts["masks"] += len(masks)
            part.add("tracks", line)
            part.counts.update(tracks=1, captions=len(track.captions))

    def finish(self, merge: Merge) -> None:
        """Writes ``tracks.jsonl``."""
        write_lines(merge.folder / LINES_FILE, merge.bodies("tracks"))

    @classmethod
    def read(cls, path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
        """Reads ``tracks.jsonl``, video by video; the lines of one lie together."""
        lines = read_lines(find_file(path, LINES_FILE))
        videos = groupby(lines, key=_video_of)
        return read_videos(videos, _read_video)


@dataclass(frozen=True)
class Csv(Format):
    """Writes ``captions.csv``: one caption a row.

    Text is written as it is. A spreadsheet may take a cell that begins with ``=`` for a
    formula: import the column as text.
    """

    summary: ClassVar[str] = "one caption a row"

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's captions."""
        path = media.video(video, part.folder)
        for records in video.captions.values():
            for record in records:
                part.add("rows", _row(video, path, record))
                part.counts["captions"] += 1

    def finish(self, merge: Merge) -> None:
        """Writes ``captions.csv``."""
        path = merge.folder / CSV_FILE
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(json.loads(body) for body in merge.bodies("rows"))


def _row(video: VideoRecord, path: str, record: CaptionRecord) -> list[Any]:
    first, last = record.support
    values = {
        **caption_to_json(record),
        "video": path,
        "start_seconds": round(video.timeline.at(first), 3),
        "end_seconds": round(video.timeline.at(last + 1), 3),
        "review": record.review,
        "tags": "; ".join(tag for tag, _ in record.tags),
        "attributes": "; ".join(attribute for attribute, _ in record.attributes),
        "category": record.category[0] if record.category else None,
    }
    return [values.get(column) for column in COLUMNS]


def _video_of(line: tuple[int, Any]) -> str:
    line_number, value = line
    return str(value.get("video")) if isinstance(value, dict) else f"line {line_number}"


def _read_video(name: str, lines: Iterator[tuple[int, Any]]) -> ImportedVideo:
    found = ImportedVideo(name)
    for line_number, value in list(lines):
        line = Entry(value, f"line {line_number}")
        if line.get("height") is not None:
            found.size = line.size()
        found.frame_count = line.optional("frame_count", integer) or found.frame_count
        index = line.integer("index")
        found.add_label(index, line.get("label"))
        scores = Entry(line.mapping("scores"), f"'scores' of {line.what}")
        for frame, mask in line.mapping("masks").items():
            found.add_mask(frame, index, mask, scores.optional(frame, number))
        for caption in line.items("captions"):
            found.add_caption(caption, index=index)
    return found
