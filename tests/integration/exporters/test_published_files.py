"""Files as other tools publish them, and files that are damaged: small, no dataset."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fiftyone_regioncap.exporters import importable_formats, records
from fiftyone_regioncap.exporters.reading import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.registry import FORMATS
from tests.support.formats import (
    DOCUMENTS,
    NOTHING,
    coco,
    jsonl,
    mevis,
    read,
    sa_v,
    videorefer,
    youtube_vis,
)


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
            "the label of object 6 is no text: 5",
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


@pytest.mark.parametrize("text", ["猫" * 200, "🦊x" * 200, "é" * 119 + "y" * 300])
def test_names_of_files_fit_into_file_systems(text: str) -> None:
    name = records.safe_name(text)
    assert 0 < len(f"12-{name}-000000-000023.vtt".encode()) <= 255
    assert name == records.safe_name(name)
