"""Writes VideoRefer's conversations about masked regions (Yuan et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.exporters.base import ImportableFormat
from fiftyone_regioncap.exporters.conversations import (
    annotation,
    choose,
    fill,
    read_conversations,
    turns,
)
from fiftyone_regioncap.exporters.files import write_list
from fiftyone_regioncap.exporters.gathering import Captioned, captioned
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.reading import BrokenVideo, ImportedVideo, find_file
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import Merge, Part

SFT_FILE = "videorefer.json"
BENCH_FILE = "videorefer_bench_d.json"


@dataclass(frozen=True)
class VideoRefer(ImportableFormat):
    """Writes fine-tuning data: one conversation a caption, about one region."""

    summary: ClassVar[str] = "VideoRefer fine-tuning conversations about masked regions"
    file: ClassVar[str] = SFT_FILE

    frames: int | None = option(
        32,
        "Number of masks of each object, evenly over its frames; none keeps all.",
        unit="frames",
        minimum=1,
    )
    prompts: tuple[str, ...] = option(
        (
            "Please give a detailed description of the highlighted object <region> in "
            "the video.",
            "What is <region> doing in the video?",
            "Describe <region> and how it moves through the video.",
        ),
        "Questions, of which each caption gets one; <region> is the object, {label} "
        "its name.",
    )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's conversations or descriptions."""
        path = media.video(video, part.folder)
        for item in captioned(video, self.frames):
            entry = {"video": path, **self._text(video, item), **annotation(item)}
            part.add("items", entry)
            part.counts.update(captions=1, masks=len(item.masks))

    def finish(self, merge: Merge) -> None:
        """Writes the list of all."""
        write_list(merge.folder / self.file, merge.numbered("items", start=0))

    @classmethod
    def read(cls, path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
        """Reads VideoRefer's fine-tuning data or benchmark."""
        return read_conversations(find_file(path, SFT_FILE, BENCH_FILE))

    def _text(self, video: VideoRecord, item: Captioned) -> dict[str, Any]:
        values = {"label": item.label or "object"}
        prompt = fill(choose(self.prompts, video.name, *item.record.key), values)
        return {"conversations": turns(f"<video>\n{prompt}", item.record.caption)}


@dataclass(frozen=True)
class VideoReferBench(VideoRefer):
    """Writes descriptions as VideoRefer-Bench-D has them."""

    summary: ClassVar[str] = "VideoRefer-Bench-D descriptions"
    file: ClassVar[str] = BENCH_FILE

    def _text(self, video: VideoRecord, item: Captioned) -> dict[str, Any]:
        return {"caption": item.record.caption, "frame_idx": str(item.best[0])}
