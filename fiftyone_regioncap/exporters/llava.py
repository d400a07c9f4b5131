"""LLaVA and VILA: conversations about videos, clips or images, one a caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np

from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.dataset.encoded import EncodedLabel
from fiftyone_regioncap.exporters.base import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.files import write_list
from fiftyone_regioncap.exporters.gathering import Captioned, captioned
from fiftyone_regioncap.exporters.media import Media, jpeg, pictures
from fiftyone_regioncap.exporters.reading import main_file
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part
from fiftyone_regioncap.exporters.templates import choose, fill, turns
from fiftyone_regioncap.exporters.videorefer import annotation, read_conversations

FILE = "llava.json"

Kind: TypeAlias = Literal["video", "clip", "image"]
Show: TypeAlias = Literal["box", "outline", "crop"]

_OUTLINE = (255, 0, 0)
_CROP_MARGIN = 0.25  # of the box's size, on each side

PROMPTS: dict[Kind, str] = {
    "video": "The object {label} is at {box} at {time} s of the video. Describe it and "
    "what it does.",
    "clip": "The object {label} is at {box} at {time} s of the video. Describe it and "
    "what it does.",
    "image": "Describe the object {label} at {box} in detail.",
}
SHOWN_PROMPT = "Describe the object that is shown in detail."


@dataclass(frozen=True)
class Llava:
    """Writes ``llava.json``.

    These models have no token for a region, so that the prompt has to say where it is:
    ``{box}`` is ``[x1, y1, x2, y2]`` in shares of the frame's size, on the frame where
    the object is largest, ``{time}`` that frame's second, ``{first}`` and ``{last}``
    the seconds that the caption is about, and ``{label}`` the object's name.

    Attributes:
        name: as it is asked for.
        kind: what a conversation is about: the whole video, the clip of the caption's
            window, or the image of the frame where the object is largest.
        show: in images, whether the object is named by its box in the prompt, or also
            outlined in the picture, or cut out with a margin.
        prompts: questions, of which each caption gets one; empty for the default.
        frames: masks that are kept with each conversation under an extra key, evenly
            over the object's frames; None for all.
    """

    name: str = "llava"
    kind: Kind = "video"
    show: Show = "box"
    prompts: tuple[str, ...] = ()
    frames: int | None = 8

    def __post_init__(self) -> None:
        for value, kinds in ((self.kind, Kind), (self.show, Show)):
            if value not in get_args(kinds):
                raise ExportError(
                    f"llava knows no {value!r}; choose one of "
                    + ", ".join(get_args(kinds))
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
                path = f"clips/{video.name}/{item.record.index}-{first:06d}.mp4"
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

    def _question(self, video: VideoRecord, item: Captioned, start: int) -> str:
        default = PROMPTS[self.kind]
        if self.kind == "image" and self.show != "box":
            default = SHOWN_PROMPT
        frame, label = item.best
        first, last = item.record.support
        fps = video.fps or 30.0
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
            "time": f"{(frame - start) / fps:.2f}",
            "first": f"{(first - start) / fps:.2f}",
            "last": f"{(last + 1 - start) / fps:.2f}",
        }
        prompt = choose(self.prompts or (default,), video.name, *item.record.key)
        return " ".join(fill(prompt, values).split())

    def _write_images(
        self, video: VideoRecord, items: list[Captioned], part: Part
    ) -> None:
        wanted: dict[int, list[Captioned]] = {}
        for item in items:
            wanted.setdefault(item.best[0], []).append(item)
        for frame, picture in pictures(video, wanted):
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
    first, _ = item.record.support
    return f"images/{video.name}/{item.record.index}-{first:06d}.jpg"


def read_llava(path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads ``llava.json`` back, with the masks that were kept with it.

    Args:
        path: of the folder or the file.

    Raises:
        ExportError: when there is no such file.
    """
    yield from read_conversations(main_file(path, FILE))
