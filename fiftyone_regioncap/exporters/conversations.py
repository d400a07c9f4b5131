"""Conversations about regions: questions, answers, and reading them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from fiftyone_regioncap.exporters.captions import caption_to_json
from fiftyone_regioncap.exporters.gathering import Captioned, coco_rle
from fiftyone_regioncap.exporters.reading import (
    BrokenVideo,
    Entry,
    ImportedVideo,
    read_json,
    read_videos,
)
from fiftyone_regioncap.exporters.staging import ExportError

RECORD = "regioncap"
"""An extra key with all that is kept of a caption; other tools pass over it."""


def choose(templates: Sequence[str], *key: object) -> str:
    """Chooses one of several templates, evenly, and always the same for a key.

    Raises:
        ExportError: When there is none.
    """
    if not templates:
        raise ExportError("there is no prompt; give at least one")
    digest = sha256("\x1f".join(map(str, key)).encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]


def fill(template: str, values: Mapping[str, str]) -> str:
    """Puts values in place of ``{name}``; other braces, and those of values, stay."""
    parts = template.split("{")
    filled = [parts[0]]
    for part in parts[1:]:
        name, brace, rest = part.partition("}")
        known = bool(brace) and name in values
        filled.append(values[name] + rest if known else "{" + part)
    return "".join(filled)


def turns(question: str, answer: str) -> list[dict[str, str]]:
    """Returns a conversation of one question, as LLaVA and all after it have it."""
    return [
        {"from": "human", "value": question},
        {"from": "gpt", "value": answer},
    ]


def annotation(item: Captioned) -> dict[str, Any]:
    """Returns the keys that say where the object is, and whose caption it is."""
    masks = {
        str(frame): {"segmentation": coco_rle(label.rle)}
        for frame, label in item.masks.items()
    }
    record = {**caption_to_json(item.record), "label": item.label}
    return {"annotation": [masks], RECORD: record}


def read_conversations(path: Path) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads a list of conversations or descriptions of regions of videos.

    In files of other tools the objects of a video are numbered from 1 in the order of
    their items, and a caption is about the frames from the first mask to the last.

    Args:
        path: The JSON file.

    Raises:
        ExportError: When it holds no list.
    """
    items = read_json(path)
    if not isinstance(items, list):
        raise ExportError(f"{path} holds no JSON list")
    videos: dict[str, list[Any]] = {}
    for item in items:
        own = isinstance(item, dict) and item.get(RECORD) is not None
        # Our items about clips and images name the video that they are from.
        source = item.get("source") if own else None
        media = item.get("video") if isinstance(item, dict) else None
        videos.setdefault(str(source or media), []).append(item)
    return read_videos(videos.items(), _read_video)


def _read_video(name: str, items: list[Any]) -> ImportedVideo:
    found = ImportedVideo(name)
    for number, value in enumerate(items, 1):
        item = Entry(value, f"item number {number}")
        if item.get("id") is not None:
            item.what = f"item {item.key('id')}"
        known = item.optional(RECORD, Entry)
        index = number if known is None else known.integer("index")
        regions = item.items("annotation")
        if known is None and len(regions) > 1:
            found.skipped.append(
                f"{item.what} speaks of {len(regions)} regions at once; an object has "
                "captions of its own"
            )
            continue
        masks = Entry(regions[0] if regions else {}, f"annotation of {item.what}")
        for frame in masks.value:
            region = Entry(masks.require(frame), f"frame {frame} of {item.what}")
            found.add_mask(frame, index, region.get("segmentation"))
        said = (
            item.text("caption") if item.get("caption") is not None else _answer(item)
        )
        if known is not None:
            found.add_caption({**known.value, "caption": said})
        else:
            found.add_text(index, said)
    return found


def _answer(item: Entry) -> str:
    for turn in item.entries("conversations", f"turn of {item.what},"):
        if turn.get("from") in ("gpt", "assistant"):
            return turn.text("value")
    raise ExportError(f"{item.what} has no answer")
