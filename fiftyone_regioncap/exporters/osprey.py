"""Writes Osprey's conversations and descriptions of masked regions (Yuan et al.)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.exporters.base import Format
from fiftyone_regioncap.exporters.conversations import choose, fill, turns
from fiftyone_regioncap.exporters.files import write_list
from fiftyone_regioncap.exporters.gathering import (
    Captioned,
    coco_region,
    on_best_frames,
)
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import Merge, Part

FILE = "osprey.json"


@dataclass(frozen=True)
class Osprey(Format):
    """Writes ``osprey.json`` and ``images/``.

    A caption is shown on the frame where its object is largest; captions that share
    that frame share an image, where ``<region1>`` is the first of ``annotation``.
    """

    summary: ClassVar[str] = "Osprey conversations or descriptions of regions of images"

    kind: Literal["conversation", "detail"] = option(
        "conversation",
        "What is written of a region.",
        choices={
            "conversation": "A question and an answer",
            "detail": "A description in a list",
        },
    )
    prompts: tuple[str, ...] = option(
        ("Can you describe <region> in detail?",),
        "Questions, of which each region gets one; <region> is the object, {label} its "
        "name.",
    )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's images."""
        paths: dict[int, str] = {}
        # Osprey's loader cuts a file's name off at its last underscore.
        folder = video.name
        if "_" in folder:
            folder = f"{folder.replace('_', '-')}-{video.job.number:06d}"
        for frame, items in on_best_frames(video):
            paths[frame] = f"images/{folder}/{frame:06d}.jpg"
            entry = {
                "file_name": paths[frame],
                "height": video.height,
                "width": video.width,
                "annotation": [_annotation(item) for item in items],
            }
            if self.kind == "detail":
                entry["description"] = [
                    # The loader takes what is between the last ">: " and a newline.
                    f"<region{number}>: {_line(item).replace('>:', '> :')}"
                    for number, item in enumerate(items, 1)
                ]
            else:
                entry["conversations"] = self._conversations(video, items)
            part.add("items", entry)
            part.counts.update(captions=len(items), masks=len(items), frames=1)
        media.frames(video, part.folder, paths.items())

    def finish(self, merge: Merge) -> None:
        """Writes ``osprey.json``."""
        write_list(merge.folder / FILE, merge.numbered("items", start=0))

    def _conversations(
        self, video: VideoRecord, items: list[Captioned]
    ) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        for number, item in enumerate(items, 1):
            prompt = choose(self.prompts, video.name, *item.record.key)
            question = fill(prompt, {"label": item.label or "object"})
            question = question.replace("<region>", f"<region{number}>")
            found += turns(question, _line(item))
        return found


def _line(item: Captioned) -> str:
    """Returns the caption on one line."""
    return " ".join(item.record.caption.split())


def _annotation(item: Captioned) -> dict[str, Any]:
    region = coco_region(item.best[1])
    del region["iscrowd"]
    return {**region, "object_id": item.record.index, "label": item.label}
