"""Files as other tools publish them, and files that are damaged: small, no dataset."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from fiftyone_regioncap.exporters import ExportError, importable_formats, records
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


def read(folder: Path, name: str, document: Any) -> list[ImportedVideo | BrokenVideo]:
    """Writes a document and reads it."""
    file = folder / DOCUMENTS[name][0]
    if name == "jsonl":
        file.write_text("\n".join(map(json.dumps, document)))
    else:
        file.write_text(json.dumps(document))
    if name == "mevis" and not (folder / "mask_dict.json").exists():
        (folder / "mask_dict.json").write_text(json.dumps(MASK_DICT))
    return list(FORMATS[name].read(folder))  # type: ignore[attr-defined]


def frames(video: Any) -> dict[int, list[int]]:
    """The objects on each frame."""
    assert isinstance(video, ImportedVideo), video
    return {frame: sorted(masks) for frame, masks in sorted(video.masks.items())}


def test_there_is_a_document_of_every_format() -> None:
    assert DOCUMENTS.keys() == importable_formats().keys()


def test_tao_counts_the_frames_of_the_video(tmp_path: Path) -> None:
    one, two = read(tmp_path, "coco", coco())
    assert frames(one) == {10: [5], 20: [5]}
    assert isinstance(one, ImportedVideo) and one.labels == {5: "cat"}
    assert frames(two) == {10: [6]}


def test_a_caption_of_another_tool_is_about_where_its_object_is(tmp_path: Path) -> None:
    one, two = read(tmp_path, "youtube-vis", youtube_vis())
    assert isinstance(one, ImportedVideo)
    (caption,) = one.captions.values()
    assert (caption.index, caption.support) == (7, (1, 2))
    assert (caption.label, caption.caption) == ("cat", "A cat.")
    assert frames(two) == {0: [8], 1: [8], 2: [8]}


def test_manual_and_automatic_masklets_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "v1_auto.json").write_text(json.dumps(sa_v(3)))
    (video,) = read(tmp_path, "sa-v", sa_v(2))
    assert frames(video) == {0: [0, 1, 2, 3, 4], 8: [0, 1, 2, 3, 4]}
    (alone,) = FORMATS["sa-v"].read(tmp_path / "v1_auto.json")  # type: ignore[attr-defined]
    assert frames(alone) == {0: [0, 1, 2], 8: [0, 1, 2]}


def test_a_null_mask_is_of_an_object_that_is_hidden(tmp_path: Path) -> None:
    items = videorefer()
    items[0]["annotation"][0]["1"] = {"segmentation": None}
    one, _ = read(tmp_path, "videorefer", items)
    assert frames(one) == {0: [1], 2: [1]}


def test_an_item_of_two_regions_costs_itself(tmp_path: Path) -> None:
    items = videorefer()
    both = {**items[0], "id": 3, "annotation": items[0]["annotation"] * 2}
    one, _ = read(tmp_path, "videorefer", [items[0], both, items[1]])
    assert isinstance(one, ImportedVideo) and len(one.captions) == 1
    assert one.skipped == [
        "item 3 speaks of 2 regions at once; an object has captions of its own"
    ]


def test_expressions_of_several_objects_are_captions_of_each(tmp_path: Path) -> None:
    one, _ = read(tmp_path, "mevis", mevis())
    assert isinstance(one, ImportedVideo)
    said = {record.index: record.caption for record in one.captions.values()}
    assert said == {1: "both\none", 2: "both"}


def test_masks_that_are_all_empty_are_no_tracks(tmp_path: Path) -> None:
    document = youtube_vis()
    document["annotations"][1]["segmentations"] = [NOTHING] * 3
    _, two = read(tmp_path, "youtube-vis", document)
    assert frames(two) == {}


def test_a_category_without_an_id_costs_its_name(tmp_path: Path) -> None:
    document = coco()
    del document["categories"][1]["id"]
    one, two = read(tmp_path, "coco", document)
    assert isinstance(one, ImportedVideo) and one.labels == {5: "cat"}
    assert isinstance(two, ImportedVideo) and two.labels == {}
    assert frames(two) == {10: [6]}


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        pytest.param(
            "coco",
            lambda d: d["annotations"][2].update(score="high"),
            "'score' of annotation 3 is no number: 'high'",
            id="a score in words",
        ),
        pytest.param(
            "coco",
            lambda d: d["annotations"][2].update(score=math.nan),
            "'score' of annotation 3 is not finite: nan",
            id="a score of NaN",
        ),
        pytest.param(
            "coco",
            lambda d: d["annotations"][2].pop("track_id"),
            "annotation 3 has no 'track_id'",
            id="no id",
        ),
        pytest.param(
            "coco",
            lambda d: d["categories"][1].update(name=5),
            "label is no text: 5",
            id="a number for a name",
        ),
        pytest.param(
            "coco",
            lambda d: d["annotations"][2].pop("segmentation"),
            "annotation 3 has a box and no mask",
            id="a box alone",
        ),
        pytest.param(
            "coco",
            lambda d: d["videos"][1].pop("height"),
            "video 2 has no 'height'",
            id="no height",
        ),
        pytest.param(
            "youtube-vis",
            lambda d: d["annotations"][1].update(
                segmentations=[None] * 3, bboxes=[[0, 0, 1, 1]] * 3
            ),
            "annotation 8 has boxes and no masks",
            id="boxes alone",
        ),
        pytest.param(
            "youtube-vis",
            lambda d: d["videos"][1].update(height=10**6, width=10**6),
            "is no size of a frame",
            id="a forged size",
        ),
        pytest.param(
            "mevis",
            lambda d: d["videos"]["v2"]["expressions"]["0"].update(obj_id=[4, 5]),
            "expression 0 of v2 has 2 objects and 1 annotations",
            id="two objects and one annotation",
        ),
        pytest.param(
            "jsonl",
            lambda d: d[1].update(
                captions=[{"caption": 5, "first_frame": 0, "last_frame": 1}]
            ),
            "caption=5: give a text",
            id="a number for a caption",
        ),
        pytest.param(
            "jsonl",
            lambda d: d[1].update(index=math.inf),
            "'index' of line 2 is no whole number: inf",
            id="an infinite id",
        ),
        pytest.param(
            "videorefer",
            lambda d: d[1].update(annotation=[]),
            "object 1 has a caption, and no mask",
            id="a caption of nothing",
        ),
    ],
)
def test_a_damaged_video_costs_itself_and_is_named(
    tmp_path: Path, name: str, change: Callable[[Any], Any], error: str
) -> None:
    document = DOCUMENTS[name][1]()
    change(document)
    one, two = read(tmp_path, name, document)
    assert isinstance(one, ImportedVideo) and one.masks
    assert isinstance(two, BrokenVideo) and error in two.error
    assert two.name.startswith("v2")


@pytest.mark.parametrize("name", ["coco", "youtube-vis"])
def test_annotations_of_no_video_are_named(tmp_path: Path, name: str) -> None:
    document = DOCUMENTS[name][1]()
    document["annotations"][-1].update(video_id=9, image_id=99)
    *_, last = read(tmp_path, name, document)
    assert isinstance(last, BrokenVideo) and last.name == "video_id 9"
    assert "is of no video in the file" in last.error


def test_a_line_that_is_no_json_costs_itself(tmp_path: Path) -> None:
    lines = list(map(json.dumps, jsonl()))
    (tmp_path / "tracks.jsonl").write_text("\n".join([lines[0], "{", lines[1]]))
    one, line, two = FORMATS["jsonl"].read(tmp_path)  # type: ignore[attr-defined]
    assert frames(one) == {0: [1]} and frames(two) == {1: [2]}
    assert isinstance(line, BrokenVideo) and line.name == "line 2"


ODD = st.sampled_from(
    [
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
        [],
        {},
        [[]],
        [None],
        {"a": 1},
        [1, 2, 3],
        {"size": [1, 1], "counts": "0"},
        json.loads("[" * 400 + "]" * 400),
    ]
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a document, with each of its keys."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    found = [(value, key) for key in keys]
    return [*found, *(place for key in keys for place in places(value[key]))]


@pytest.mark.parametrize("name", DOCUMENTS)
@settings(
    max_examples=int(os.environ.get("REGIONCAP_FUZZ", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_no_file_escapes_the_checks(tmp_path: Path, name: str, data: Any) -> None:
    document = {"root": copy.deepcopy(DOCUMENTS[name][1]())}
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(document)))
        if data.draw(st.booleans()) or container is document:
            container[key] = copy.deepcopy(data.draw(ODD))
        else:
            del container[key]
    root = document["root"]
    if name == "jsonl" and not isinstance(root, list):
        root = [root]
    try:
        videos = read(tmp_path, name, root)
    except ExportError:
        return
    for video in videos:
        if isinstance(video, ImportedVideo):
            for masks in video.masks.values():
                assert all(mask.size == video.size for mask in masks.values())
            for record in video.captions.values():
                assert isinstance(record.caption, str)
            assert all(math.isfinite(score) for score in video.scores.values())


@pytest.mark.parametrize("text", ["猫" * 200, "🦊x" * 200, "é" * 119 + "y" * 300])
def test_names_of_files_fit_into_file_systems(text: str) -> None:
    name = records.safe_name(text)
    assert 0 < len(f"12-{name}-000000-000023.vtt".encode()) <= 255
    assert name == records.safe_name(name)
