"""VideoRefer: conversations about masked regions of videos (Yuan et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.base import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.captions import caption_from_json, caption_to_json
from fiftyone_regioncap.exporters.files import coco_rle, write_list
from fiftyone_regioncap.exporters.gathering import Captioned, captioned
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import (
    checked_rle,
    integer,
    main_file,
    read_json,
)
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part
from fiftyone_regioncap.exporters.templates import choose, fill, turns

SFT_FILE = "videorefer.json"
BENCH_FILE = "videorefer_bench_d.json"

RECORD = "regioncap"
"""An extra key with all that is kept of a caption; other tools pass over it."""


@dataclass(frozen=True)
class VideoRefer:
    """Writes fine-tuning data: one conversation a caption, about one region.

    Attributes:
        name: as it is asked for.
        frames: masks of each object, evenly over its frames; None for all.
        prompts: questions, of which each caption gets one; ``<region>`` is the object,
            ``{label}`` its name.
    """

    name: str = "videorefer"
    frames: int | None = 32
    prompts: tuple[str, ...] = (
        "Please give a detailed description of the highlighted object <region> in the "
        "video.",
        "What is <region> doing in the video?",
        "Describe <region> and how it moves through the video.",
    )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's conversations."""
        path = media.video(video, part.folder)
        for item in captioned(video, self.frames):
            values = {"label": item.label or "object"}
            prompt = fill(choose(self.prompts, video.name, *item.record.key), values)
            entry = {
                "video": path,
                "conversations": turns(f"<video>\n{prompt}", item.record.caption),
                **annotation(item),
            }
            part.add("items", entry)
            part.counts.update(captions=1, masks=len(item.masks))

    def finish(self, merge: Merge) -> None:
        """Writes ``videorefer.json``."""
        write_list(merge.folder / SFT_FILE, merge.numbered("items", start=0))


@dataclass(frozen=True)
class VideoReferBench:
    """Writes descriptions as VideoRefer-Bench-D has them.

    Attributes:
        name: as it is asked for.
        frames: masks of each object, evenly over its frames.
    """

    name: str = "videorefer-bench"
    frames: int = 32

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's descriptions."""
        path = media.video(video, part.folder)
        for item in captioned(video, self.frames):
            entry = {
                "video": path,
                "caption": item.record.caption,
                "frame_idx": str(item.best[0]),
                **annotation(item),
            }
            part.add("items", entry)
            part.counts.update(captions=1, masks=len(item.masks))

    def finish(self, merge: Merge) -> None:
        """Writes ``videorefer_bench_d.json``."""
        write_list(merge.folder / BENCH_FILE, merge.numbered("items", start=0))


def annotation(item: Captioned) -> dict[str, Any]:
    """The keys that say where the object is, and whose caption it is."""
    masks = {
        str(frame): {"segmentation": coco_rle(label.rle)}
        for frame, label in item.masks.items()
    }
    record = {**caption_to_json(item.record), "label": item.label}
    return {"annotation": [masks], RECORD: record}


def read_videorefer(path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads VideoRefer's fine-tuning data or benchmark back.

    In files of other tools the objects of a video are numbered from 1 in the order of
    their items, and a caption is about the frames from the first mask to the last.

    Args:
        path: of the folder or the file.

    Raises:
        ExportError: when there is no such file.
    """
    yield from read_conversations(main_file(path, SFT_FILE, BENCH_FILE))


def read_conversations(path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads a list of conversations about regions of videos.

    Args:
        path: of the file.

    Raises:
        ExportError: when it holds no list.
    """
    videos: dict[str, list[Any]] = {}
    for item in read_json(path, list):
        media = item.get("video") if isinstance(item, dict) else None
        videos.setdefault(str(media), []).append(item)
    for media, items in videos.items():
        try:
            yield _read_video(media, items)
        except (ExportError, KeyError, TypeError, IndexError, AttributeError) as error:
            yield BrokenVideo(media, f"{error}")


def _read_video(media: str, items: Iterable[Mapping[str, Any]]) -> ImportedVideo:
    masks: dict[int, dict[int, RLE]] = {}
    labels: dict[int, str] = {}
    captions: list[CaptionRecord] = []
    for number, item in enumerate(items, 1):
        known = item.get(RECORD)
        index = number if known is None else integer(known["index"], "index")
        regions = item.get("annotation") or [{}]
        if known is None and len(regions) > 1:
            raise ExportError(
                f"item {item.get('id')} speaks of {len(regions)} regions at once; an "
                "object has captions of its own"
            )
        own = {
            integer(frame, "frame"): checked_rle(value["segmentation"])
            for frame, value in regions[0].items()
        }
        for frame, mask in own.items():
            masks.setdefault(frame, {})[index] = mask
        text = item["caption"] if "caption" in item else _answer(item)
        if known is not None:
            record = caption_from_json({**known, "caption": text})
        else:
            if not own:
                raise ExportError(f"item {item.get('id')} says nowhere what it is of")
            record = CaptionRecord(index, (min(own), max(own)), caption=str(text))
        captions.append(record)
        if record.label:
            labels[index] = record.label
    return ImportedVideo(media, masks, labels, captions)


def _answer(item: Mapping[str, Any]) -> str:
    for turn in item["conversations"]:
        if turn.get("from") in ("gpt", "assistant"):
            return str(turn["value"])
    raise ExportError(f"item {item.get('id')} has no answer")
