"""Writes LLaVA's and VILA's conversations about videos, clips or images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import cv2
import numpy as np

from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.dataset.encoded import EncodedLabel
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
from fiftyone_regioncap.exporters.media import Media, jpeg, read_frames
from fiftyone_regioncap.exporters.reading import BrokenVideo, ImportedVideo, find_file
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import Merge, Part
from fiftyone_regioncap.video.timeline import Timeline

FILE = "llava.json"

_OUTLINE = (255, 0, 0)
_CROP_MARGIN = 0.25  # of the box's size, on each side

_VIDEO_PROMPT = (
    "The object {label} is at {box} at {time} s of the video. Describe it and what it "
    "does."
)
_IMAGE_PROMPT = "Describe the object {label} at {box} in detail."
_SHOWN_PROMPT = "Describe the object that is shown in detail."


@dataclass(frozen=True)
class Llava(ImportableFormat):
    """Writes ``llava.json``.

    These models have no token for a region, so that the prompt has to say where it is:
    ``{box}`` is ``[x1, y1, x2, y2]`` in shares of the frame's size, on the frame where
    the object is largest, ``{time}`` that frame's second, ``{first}`` and ``{last}``
    the seconds that the caption is about, and ``{label}`` the object's name.
    """

    summary: ClassVar[str] = (
        "LLaVA and VILA conversations about videos, clips or images"
    )

    kind: Literal["video", "clip", "image"] = option(
        "video",
        "What a conversation is about.",
        choices={
            "video": "The whole video",
            "clip": "The clip of the caption's window",
            "image": "The frame where the object is largest",
        },
    )
    show: Literal["box", "outline", "crop"] = option(
        "box",
        "How an image shows the object.",
        choices={
            "box": "By its box in the prompt alone",
            "outline": "Outlined in the picture",
            "crop": "Cut out with a margin",
        },
    )
    prompts: tuple[str, ...] = option(
        (), "Questions, of which each caption gets one; without any, the default."
    )
    frames: int | None = option(
        8,
        "Number of masks of each object that are kept under an extra key, evenly over "
        "its frames; none keeps all.",
        unit="frames",
        minimum=1,
    )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's conversations."""
        items = list(captioned(video, self.frames))
        path = media.video(video, part.folder) if self.kind == "video" else None
        if self.kind == "image" and media.mode != "none":
            self._write_images(video, items, part)
        for item in items:
            first, last = item.record.support
            if self.kind == "clip":
                path = f"clips/{video.name}/{_stem(item)}.mp4"
                media.clip(video, item.record.support, part.folder, path)
            elif self.kind == "image":
                path = _image_path(video, item)
            start = first if self.kind == "clip" else 0
            key = "image" if self.kind == "image" else "video"
            entry = {
                "id": f"{video.name}/{item.record.index}/{first}-{last}",
                key: path,
                "conversations": turns(
                    f"<{key}>\n{self._question(video, item, start)}",
                    item.record.caption,
                ),
                "source": video.name,
                **annotation(item),
            }
            part.add("items", entry)
            part.counts.update(captions=1, masks=len(item.masks))

    def finish(self, merge: Merge) -> None:
        """Writes ``llava.json``."""
        write_list(merge.folder / FILE, merge.bodies("items"))

    @classmethod
    def read(cls, path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
        """Reads ``llava.json``, with the masks that were kept with it."""
        return read_conversations(find_file(path, FILE))

    def _question(self, video: VideoRecord, item: Captioned, start: int) -> str:
        default = _VIDEO_PROMPT
        if self.kind == "image":
            default = _IMAGE_PROMPT if self.show == "box" else _SHOWN_PROMPT
        frame, label = item.best
        first, last = item.record.support
        timeline = video.timeline
        if self.kind == "clip":
            rate = timeline.rate_between(first, last)
            timeline = Timeline.constant(last + 1 - first, rate)
        x1, y1, x2, y2 = label.box
        shares = (
            x1 / video.width,
            y1 / video.height,
            x2 / video.width,
            y2 / video.height,
        )
        values = {
            "label": item.label or "",
            "box": "[" + ", ".join(f"{share:.3f}" for share in shares) + "]",
            "time": f"{timeline.at(frame - start):.2f}",
            "first": f"{timeline.at(first - start):.2f}",
            "last": f"{timeline.at(last + 1 - start):.2f}",
        }
        prompt = choose(self.prompts or (default,), video.name, *item.record.key)
        return " ".join(fill(prompt, values).split())

    def _write_images(
        self, video: VideoRecord, items: list[Captioned], part: Part
    ) -> None:
        wanted: dict[int, list[Captioned]] = {}
        for item in items:
            wanted.setdefault(item.best[0], []).append(item)
        for frame, picture in read_frames(video, wanted):
            for item in wanted[frame]:
                path = part.folder / _image_path(video, item)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(self._shown(picture, item.best[1])))

    def _shown(self, picture: Frame, label: EncodedLabel) -> Frame:
        if self.show == "outline":
            mask = label.rle.decode().astype(np.uint8)
            lines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            return cv2.drawContours(picture.copy(), lines, -1, _OUTLINE, 2)
        if self.show == "crop":
            x1, y1, x2, y2 = label.box
            across, down = _CROP_MARGIN * (x2 - x1), _CROP_MARGIN * (y2 - y1)
            top, left = max(round(y1 - down), 0), max(round(x1 - across), 0)
            return np.ascontiguousarray(
                picture[top : round(y2 + down), left : round(x2 + across)]
            )
        return picture


def _image_path(video: VideoRecord, item: Captioned) -> str:
    return f"images/{video.name}/{_stem(item)}.jpg"


def _stem(item: Captioned) -> str:
    first, last = item.record.support
    return f"{item.record.index}-{first:06d}-{last:06d}"
