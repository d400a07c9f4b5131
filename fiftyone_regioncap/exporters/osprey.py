"""Osprey: images with masked regions, conversations and descriptions (Yuan et al.)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from fiftyone_regioncap.exporters.files import coco_rle, write_list
from fiftyone_regioncap.exporters.gathering import Captioned, captioned
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part
from fiftyone_regioncap.exporters.templates import choose, fill, turns

FILE = "osprey.json"

Kind: TypeAlias = Literal["conversation", "detail"]


@dataclass(frozen=True)
class Osprey:
    """Writes ``osprey.json`` and ``images/``.

    A caption is shown on the frame where its object is largest; captions that share
    that frame share an image, where ``<region1>`` is the first of ``annotation``.

    Attributes:
        name: as it is asked for.
        kind: ``"conversation"`` for a question and answer a region, ``"detail"`` for a
            list of descriptions.
        prompts: questions, of which each region gets one; ``<region>`` is the object,
            ``{label}`` its name.
    """

    name: str = "osprey"
    kind: Kind = "conversation"
    prompts: tuple[str, ...] = ("Can you describe <region> in detail?",)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ExportError(
                f"osprey knows no {self.kind!r}; choose one of "
                + ", ".join(get_args(Kind))
            )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's images."""
        paths: dict[int, str] = {}
        for frame, items in on_frames(video):
            paths[frame] = f"images/{video.name}/{frame:06d}.jpg"
            entry = {
                "file_name": paths[frame],
                "height": video.height,
                "width": video.width,
                "annotation": [_annotation(item) for item in items],
            }
            if self.kind == "detail":
                entry["description"] = [
                    f"<region{number}>: {item.record.caption}"
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
            found += turns(
                question.replace("<region>", f"<region{number}>"), item.record.caption
            )
        return found


def on_frames(video: VideoRecord) -> Iterator[tuple[int, list[Captioned]]]:
    """A video's captions by the frame where their objects are largest, in order."""
    frames: dict[int, list[Captioned]] = {}
    for item in captioned(video, None):
        frame, label = item.best
        shown = Captioned(item.record, item.label, {frame: label})
        frames.setdefault(frame, []).append(shown)
    yield from sorted(frames.items())


def _annotation(item: Captioned) -> dict[str, Any]:
    _, label = item.best
    x1, y1, x2, y2 = label.box
    return {
        "segmentation": coco_rle(label.rle),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": label.area,
        "object_id": item.record.index,
        "label": item.label,
    }
