"""Tables: JSON lines, one track a line with masks, and CSV, one caption a row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.base import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.captions import caption_from_json, caption_to_json
from fiftyone_regioncap.exporters.files import coco_rle, write_lines
from fiftyone_regioncap.exporters.gathering import TrackMasks, by_track
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import (
    checked_rle,
    integer,
    main_file,
    read_lines,
)
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part

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
"""Of the CSV file. Frames count from 0 and are inclusive; words in lists are parted by
``"; "``."""


@dataclass(frozen=True)
class JsonLines:
    """Writes ``tracks.jsonl``: one track a line, with all that is kept of it.

    Attributes:
        name: as it is asked for.
        masks: whether masks are written, as COCO run lengths by frame.
    """

    name: str = "jsonl"
    masks: bool = True

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's tracks."""
        path = media.video(video, part.folder)
        tracks = by_track(video)
        untracked = video.captions.keys() - {track.index for track in tracks}
        tracks += [TrackMasks(index, None, {}) for index in sorted(untracked)]
        for track in tracks:
            captions = video.captions.get(track.index, ())
            line = {
                "video": path,
                "height": video.height,
                "width": video.width,
                "fps": video.fps,
                "frame_count": video.frame_count,
                "index": track.index,
                "label": video.label(track.index) or track.label,
                "captions": [caption_to_json(record) for record in captions],
            }
            if self.masks:
                line["masks"] = {
                    str(frame): coco_rle(label.rle)
                    for frame, label in track.masks.items()
                }
                line["scores"] = {
                    str(frame): label.score for frame, label in track.masks.items()
                }
                part.counts["masks"] += len(track.masks)
            part.add("tracks", line)
            part.counts.update(tracks=1, captions=len(captions))

    def finish(self, merge: Merge) -> None:
        """Writes ``tracks.jsonl``."""
        write_lines(merge.folder / LINES_FILE, merge.bodies("tracks"))


@dataclass(frozen=True)
class Csv:
    """Writes ``captions.csv``: one caption a row.

    Text is written as it is. A spreadsheet may take a cell that begins with ``=`` for a
    formula: import the column as text.

    Attributes:
        name: as it is asked for.
    """

    name: str = "csv"

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
        "start_seconds": round(first / video.fps, 3) if video.fps else None,
        "end_seconds": round((last + 1) / video.fps, 3) if video.fps else None,
        "review": record.review,
        "tags": "; ".join(tag for tag, _ in record.tags),
        "attributes": "; ".join(attribute for attribute, _ in record.attributes),
        "category": record.category[0] if record.category else None,
    }
    return [values.get(column) for column in COLUMNS]


def read_jsonl(path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads ``tracks.jsonl`` back, video by video; the lines of one lie together.

    Args:
        path: of the folder or the file.

    Raises:
        ExportError: when there is no such file, or a line is no JSON.
    """
    lines: list[Mapping[str, Any]] = []
    for number, line in read_lines(main_file(path, LINES_FILE)):
        if not isinstance(line, dict):
            yield BrokenVideo(f"line {number}", "no JSON object")
            continue
        if lines and line.get("video") != lines[0].get("video"):
            yield _checked(lines)
            lines = []
        lines.append(line)
    if lines:
        yield _checked(lines)


def _checked(lines: list[Mapping[str, Any]]) -> ImportedVideo | BrokenVideo:
    name = str(lines[0].get("video"))
    try:
        return _read_video(name, lines)
    except (ExportError, KeyError, TypeError, AttributeError) as error:
        return BrokenVideo(name, f"{error}")


def _read_video(name: str, lines: Iterable[Mapping[str, Any]]) -> ImportedVideo:
    masks: dict[int, dict[int, RLE]] = {}
    scores: dict[tuple[int, int], float] = {}
    labels: dict[int, str] = {}
    captions: list[CaptionRecord] = []
    size: tuple[int, int] | None = None
    frame_count: int | None = None
    for line in lines:
        if line.get("height") is not None:
            size = (integer(line["height"], "height"), integer(line["width"], "width"))
        if line.get("frame_count") is not None:
            frame_count = integer(line["frame_count"], "frame_count")
        index = integer(line["index"], "index")
        if line.get("label"):
            labels[index] = str(line["label"])
        for frame, mask in (line.get("masks") or {}).items():
            own = masks.setdefault(integer(frame, "frame"), {})
            own[index] = checked_rle(mask, size)
        for frame, score in (line.get("scores") or {}).items():
            if score is not None:
                scores[integer(frame, "frame"), index] = float(score)
        captions += [
            caption_from_json(caption, index=index)
            for caption in line.get("captions") or ()
        ]
    return ImportedVideo(name, masks, labels, captions, size, frame_count, scores)
