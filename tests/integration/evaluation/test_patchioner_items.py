from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fiftyone_regioncap.captioning.patchioner.aggregation import BoxSet, Points, Whole
from fiftyone_regioncap.captioning.patchioner.checkpoint import Checkpoint
from fiftyone_regioncap.captioning.patchioner.language import Description
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.evaluation.patchioner import (
    Answer,
    DenseTask,
    Item,
    answer,
    iou,
    load_items,
    merge_boxes,
)
from tests.support.patchioner import write_random_checkpoint

FILES: dict[str, Any] = {
    "trace": {
        "7": {
            "captions": ["a dog", "a cat"],
            "traces": [[{"x": 0.5, "y": 0.25, "t": 1}, {"x": 1.2, "y": 0}], []],
        }
    },
    "dense": {
        "images": [{"id": 3}],
        "annotations": [
            {"image_id": 3, "bbox": [10, 20, 10, 40], "caption": "a pole"},
            {"image_id": 3, "bbox": [1, 2, 30, 40], "caption": "a door"},
        ],
    },
    "region-set": {"9": {"two dogs": [[0, 0, 10, 10], [20, 0, 30, 10]], "sky": []}},
    "image": {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [
            {"image_id": 1, "caption": "a dog"},
            {"image_id": 1, "caption": "one dog"},
            {"image_id": 2, "caption": "a cat"},
        ],
    },
}


def items_of(task: Any, tmp_path: Path) -> list[Item]:
    path = tmp_path / f"{task}.json"
    path.write_text(json.dumps(FILES[task]))
    return load_items(task, path)


def test_annotation_files(tmp_path: Path) -> None:
    first, second = items_of("trace", tmp_path)
    region = first.region(height=100, width=200)
    assert isinstance(region, Points)
    np.testing.assert_allclose(region.points, [[100, 25], [240, 0]])
    assert second.trace is not None and second.trace.shape == (0, 2)

    pole, door = items_of("dense", tmp_path)
    assert pole.boxes == ((10, 20, 11, 40),)  # a line gets an area
    assert door.references == ("a door",) and door.image == "3"

    dogs, sky = items_of("region-set", tmp_path)
    assert dogs.region(50, 50) == BoxSet(((0, 0, 10, 10), (20, 0, 30, 10)))
    assert sky.region(50, 50) == Whole()  # without boxes

    one, two = items_of("image", tmp_path)
    assert one.references == ("a dog", "one dog") and two.region(9, 9) == Whole()


def test_image_captions_from_another_file(tmp_path: Path) -> None:
    images, spoken = tmp_path / "images.json", tmp_path / "captions.json"
    images.write_text(json.dumps({"images": FILES["image"]["images"][:1]}))
    spoken.write_text(json.dumps({"annotations": FILES["image"]["annotations"]}))
    (item,) = load_items("image", images, spoken)
    assert item.references == ("a dog", "one dog")


@pytest.mark.parametrize("task", FILES)
@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"a": 3, "annotations": 1}'])
def test_other_files(task: Any, text: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(PromptError, match=f"annotation file of the {task} task"):
        load_items(task, tmp_path / "file.json")


def test_answers_of_all_tasks(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "model")
    model = Checkpoint.open(folder).load()
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    opened: list[str] = []

    def open_image(name: str) -> np.ndarray:
        opened.append(name)
        return image

    for task in FILES:
        answers = list(answer(model, items_of(task, tmp_path), open_image))
        errors = [found.error is not None for found in answers]
        assert errors == [task == "trace" and n == 1 for n in range(len(answers))]
        for found in answers:
            assert bool(found.caption) == (found.error is None)
            assert found.caption == found.caption.strip(" .")
    assert opened == ["7", "3", "9", "1", "2"]  # one pass per image


def words(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
    return [float(caption in references) for caption, references in pairs]


def detected(box: Any, caption: str, score: float) -> Answer:
    return Answer(
        Item("1", (), boxes=(box,)), caption, Description(caption, score=score)
    )


TRUTH = [
    Item("1", ("a dog",), boxes=((0, 0, 10, 10),)),
    Item("1", ("the dog",), boxes=((0, 0, 10, 11),)),  # the same object
    Item("1", ("a cat",), boxes=((50, 50, 60, 60),)),
]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # Both right; the merged box is 10x10.5, still above every overlap asked for.
        ([((0, 0, 10, 10), "the dog", 2), ((50, 50, 60, 60), "a cat", 1)], 1.0),
        # One object found of two: precision 1 up to recall 0.5, of 51 of 100 points.
        ([((0, 0, 10, 10), "a dog", 2)], 0.51),
        # A surer wrong one halves the precision up to there.
        ([((80, 80, 90, 90), "a dog", 2), ((0, 0, 10, 10), "a dog", 1)], 0.255),
        # The second on the same object is wrong, whatever it says.
        ([((0, 0, 10, 10), "a dog", 2), ((0, 0, 10, 11), "the dog", 1)], 0.51),
        # In the right place with the wrong words.
        ([((0, 0, 10, 10), "a cat", 2)], 0.0),
        ([], 0.0),
    ],
)
def test_dense_score(found: Any, expected: float) -> None:
    score = DenseTask()
    score.add([detected(*entry) for entry in found], TRUTH)
    assert score.result(score.meteors(words)).mean == pytest.approx(expected)


def test_dense_score_of_places_alone() -> None:
    score = DenseTask()
    score.add([detected((0, 0, 10, 5.5), "x", 1)], TRUTH[2:])
    score.add([detected((0, 0, 10, 5.5), "x", 1)], TRUTH[:1])
    places = score.result(ious=(0.5, 0.6)).by_threshold
    assert places == pytest.approx({(0.5, -1): 0.51 * 0.5, (0.6, -1): 0})
    assert score.meteors(words) == [0, 0]
    assert DenseTask().result([]).mean == 0


def test_merging_takes_the_box_with_most_neighbors_first() -> None:
    boxes = [((0, 0, 10, 10 + n), (str(n),)) for n in range(0, 8, 2)]
    merged = merge_boxes(boxes)
    assert sum(len(captions) for _, captions in merged) == 4
    assert len(merged[0][1]) == max(len(captions) for _, captions in merged)


def test_iou() -> None:
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou((0, 0, 10, 10), (10, 0, 15, 10)) == 0
