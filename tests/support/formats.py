"""Small files as formats publish them, and values that they should not hold."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from fiftyone_regioncap.exporters.reading import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.registry import FORMATS

HEIGHT, WIDTH = 6, 8


def rle(*pixels: tuple[int, int]) -> dict[str, Any]:
    """A mask of some pixels, as COCO has it."""
    full = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    for row, column in pixels:
        full[row, column] = 1
    found = coco_mask.encode(full)
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


DOT, LINE, NOTHING = rle((1, 2)), rle((3, 1), (3, 2)), rle()


def coco() -> dict[str, Any]:
    """Two videos in TAO's layout, which annotates every tenth frame."""
    size = {"height": HEIGHT, "width": WIDTH}
    return {
        "videos": [{"id": n, "name": f"v{n}", **size} for n in (1, 2)],
        "images": [
            {"id": 10 * v + n, "video_id": v, "frame_index": 10 * n, "frame_id": n}
            for v in (1, 2)
            for n in (0, 1, 2)
        ],
        "tracks": [{"id": 5, "video_id": 1, "category_id": 3}],
        "annotations": [
            {"id": 1, "image_id": 11, "track_id": 5, "category_id": 3}
            | {"segmentation": DOT, "score": 0.5},
            {"id": 2, "image_id": 12, "track_id": 5, "category_id": 3}
            | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [7.0, 2, 39]}},
            {"id": 3, "image_id": 21, "track_id": 6, "category_id": 4}
            | {"segmentation": [[1, 1, 4, 1, 4, 4]]},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    }


def youtube_vis() -> dict[str, Any]:
    size = {"height": HEIGHT, "width": WIDTH, "length": 3}
    return {
        "videos": [
            {"id": n, "file_names": [f"v{n}/{f}.jpg" for f in range(3)], **size}
            for n in (1, 2)
        ],
        "annotations": [
            {"id": 7, "video_id": 1, "category_id": 3, "caption": "A cat."}
            | {
                "segmentations": [None, DOT, LINE],
                "bboxes": [None, [2, 1, 1, 1], None],
            },
            {"id": 8, "video_id": 2, "category_id": 3, "segmentations": [DOT] * 3},
        ],
        "categories": [{"id": 3, "name": "cat"}],
    }


def videorefer() -> list[Any]:
    turn = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A cat."}]
    return [
        {"id": 1, "video": "v1.mp4", "conversations": turn}
        | {"annotation": [{"0": {"segmentation": DOT}, "2": {"segmentation": LINE}}]},
        {"id": 2, "video": "v2.mp4", "caption": "It runs.", "frame_idx": "1"}
        | {"annotation": [{"1": {"segmentation": DOT}}]},
    ]


def mevis() -> dict[str, Any]:
    def video(*expressions: Any) -> dict[str, Any]:
        entries = {str(n): e for n, e in enumerate(expressions)}
        return {"frames": ["0", "1", "2"], "expressions": entries}

    return {
        "videos": {
            "v1": video(
                {"exp": "both", "obj_id": [1, 2], "anno_id": [0, 1]},
                {"exp": "one", "obj_id": [1], "anno_id": [0]},
            ),
            "v2": video({"exp": "it", "obj_id": [4], "anno_id": [2]}),
        }
    }


MASK_DICT = {"0": [DOT, None, DOT], "1": [None, LINE, None], "2": [DOT, DOT, DOT]}


def sa_v(count: int) -> dict[str, Any]:
    return {
        "video_id": "v1",
        "video_height": float(HEIGHT),
        "video_width": float(WIDTH),
        "video_frame_count": 9.0,
        "masklet": [[DOT] * count, [NOTHING] * count, [LINE] * count],
        "masklet_id": list(range(count)),
    }


def jsonl() -> list[Any]:
    size = {"height": HEIGHT, "width": WIDTH, "frame_count": 3}
    caption = {"caption": "A cat.", "first_frame": 0, "last_frame": 2, "label": "cat"}
    return [
        {"video": "v1.mp4", **size, "index": 1, "masks": {"0": DOT}}
        | {"scores": {"0": 0.5}, "captions": [caption]},
        {"video": "v2.mp4", **size, "index": 2, "masks": {"1": LINE}},
    ]


DOCUMENTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "coco": ("annotations.json", coco),
    "jsonl": ("tracks.jsonl", jsonl),
    "llava": ("llava.json", videorefer),
    "mevis": ("meta_expressions.json", mevis),
    "sa-v": ("v1_manual.json", lambda: sa_v(2)),
    "videorefer": ("videorefer.json", videorefer),
    "videorefer-bench": ("videorefer_bench_d.json", videorefer),
    "youtube-vis": ("instances.json", youtube_vis),
}


def write(folder: Path, name: str, document: Any) -> Path:
    """Writes a document as the main file of a format."""
    folder.mkdir(exist_ok=True)
    file = folder / DOCUMENTS[name][0]
    if name == "jsonl":
        file.write_text("\n".join(map(json.dumps, document)))
    else:
        file.write_text(json.dumps(document))
    if name == "mevis" and not (folder / "mask_dict.json").exists():
        (folder / "mask_dict.json").write_text(json.dumps(MASK_DICT))
    return file


def read(folder: Path, name: str, document: Any) -> list[ImportedVideo | BrokenVideo]:
    """Writes a document and reads it."""
    write(folder, name, document)
    return list(FORMATS[name].read(folder))  # type: ignore[attr-defined]


ODD: list[Any] = [
    None,
    True,
    -1,
    3,
    10**40,
    1.5,
    math.inf,
    math.nan,
    "",
    "x",
    "5",
    "�",
    "\ud800",
    "a\0b",
    2**63,
    -(2**63) - 1,
    1e308,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    [1, 2, 3],
    {"size": [1, 1], "counts": "0"},
    json.loads("[" * 400 + "]" * 400),
]
"""Values of the wrong type, size or depth."""


def damaged(draw: Callable[[st.SearchStrategy[Any]], Any], document: Any) -> Any:
    """Replaces or deletes a few values of a document.

    Args:
        draw: Hypothesis' function that draws from a strategy.
        document: JSON values; they stay as they are.
    """
    root = {"root": copy.deepcopy(document)}
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(places(root)))
        if container is root or draw(st.booleans()):
            container[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        else:
            del container[key]
    return root["root"]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a document, with each of its keys."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    found = [(value, key) for key in keys]
    return [*found, *(place for key in keys for place in places(value[key]))]
