"""The paper's four tasks on small files of the published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fiftyone_regioncap.captioning.patchioner.checkpoint import Checkpoint
from fiftyone_regioncap.captioning.patchioner.language import Description
from fiftyone_regioncap.cli.evaluate import evaluate
from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.evaluation import captions
from fiftyone_regioncap.evaluation.captions import score_captions
from fiftyone_regioncap.evaluation.patchioner import (
    Answer,
    Item,
    evaluate_task,
    image_files,
    score_answers,
)

pytest.importorskip("pycocoevalcap", reason="the extra `metrics` is not installed")

with_java = pytest.mark.skipif(captions.java() is None, reason="Java is not installed")

TASKS: dict[str, Any] = {
    "trace": {
        "42": {
            "captions": ["a dog runs", "a cat sleeps"],
            "traces": [[{"x": 0.5, "y": 0.25, "t": 1}], []],  # the second one is empty
        },
        "7": {"captions": ["the sky"], "traces": [[{"x": 0.1, "y": 0.1, "t": 0}]]},
    },
    "dense": {
        "images": [{"id": 42}, {"id": 7}],
        "annotations": [
            {"image_id": 42, "bbox": [1, 2, 30, 40], "caption": "a red door"},
            {"image_id": 42, "bbox": [40, 2, 80, 50], "caption": "a brown dog"},
            {"image_id": 7, "bbox": [0, 0, 90, 60], "caption": "the sky is blue"},
        ],
    },
    "region-set": {
        "42": {"two dogs play": [[0, 0, 10, 10], [20, 0, 30, 10]], "the sky": []},
        "7": {"a man": [[5.5, 5.5, 60, 50]]},
    },
    "image": {
        "images": [{"id": 42}, {"id": 7}],
        "annotations": [
            {"image_id": 42, "caption": "a dog on the grass"},
            {"image_id": 42, "caption": "one brown dog"},
            {"image_id": 7, "caption": "a cat in a box"},
        ],
    },
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("val2017/COCO_val2014_000000000042.jpg", "7.png"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        rng = np.random.default_rng(len(name))
        pixels = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {task: tmp_path / f"{task}.json" for task in TASKS}
    for task, path in paths.items():
        path.write_text(json.dumps(TASKS[task]))
    return paths


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Java takes its time to start; where numbers are those of METEOR, it does."""
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_files_to_scores(
    task: Any, files: dict[str, Path], images: Path, checkpoint: Path, no_java: None
) -> None:
    model = Checkpoint.open(checkpoint, {"compat": "reference"}).load()
    told: list[Answer] = []
    scores = evaluate_task(task, files[task], images, model, listener=told.append)
    assert scores.items == len(told) == {"image": 2}.get(task, 3)
    assert scores.failed == (task == "trace")  # of the empty trace
    expected = score_captions(
        {str(n): one.caption for n, one in enumerate(told)},
        {str(n): one.item.references for n, one in enumerate(told)},
        ("bleu", "rouge_l", "cider"),
    ).overall
    assert scores.metrics == pytest.approx(expected)
    assert (scores.detection is None) == (task != "dense")
    if task == "dense":
        # Places are given, so that every one of the three is found.
        assert scores.detection == pytest.approx(1)
    json.dumps(scores.to_dict())
    first = evaluate_task(task, files[task], images, model, limit=1)
    assert first.items == sum(one.item.image == told[0].item.image for one in told)


def item(image: str, box: tuple[float, ...], *texts: str) -> Item:
    return Item(image, texts, boxes=(box,))  # type: ignore[arg-type]


def said(one: Item, text: str, score: float | None, sure: float = 0.5) -> Answer:
    return Answer(one, text, Description(text, confidence=sure, score=score))


DOOR = item("1", (0, 0, 10, 10), "a red door")
DOG = item("1", (50, 50, 60, 60), "a brown dog runs")


@with_java
@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param(
            [said(DOOR, "a red door", 0.2), said(DOG, "a brown dog runs", 0.1)],
            1.0,
            id="all said as people do",
        ),
        # Precision is 1 up to recall 0.5: at 51 of the 100 recalls.
        pytest.param(
            [said(DOOR, "a red door", 0.2), said(DOG, "quartz", 0.1)],
            0.51,
            id="the surer one is right",
        ),
        pytest.param(
            [said(DOOR, "a red door", 0.1), said(DOG, "quartz", 0.2)],
            0.255,
            id="the surer one is wrong",
        ),
        pytest.param(
            [said(DOOR, "a red door", None, 0.1), said(DOG, "quartz", None, 0.2)],
            0.255,
            id="ordered by confidence without scores",
        ),
        pytest.param(
            [said(DOOR, "a red door", 0.1), Answer(DOG, error="empty")],
            0.51,
            id="no caption comes last",
        ),
        pytest.param(
            [said(one, text, 1) for one, text in ((DOOR, "no"), (DOG, "never"))],
            0.0,
            id="nothing right",
        ),
    ],
)
def test_dense_map(answers: list[Answer], expected: float) -> None:
    scores = score_answers("dense", answers, ())
    assert scores.dense is not None and scores.detection is not None
    assert scores.dense.mean == pytest.approx(expected)
    assert scores.detection == pytest.approx(1)
    assert f"| mAP | {100 * expected:.2f} |" in scores.to_markdown()
    assert len(scores.to_dict()["dense_by_threshold"]) == 30


@with_java
def test_all_metrics_of_the_paper_but_spice() -> None:
    scores = score_answers("dense", [said(DOOR, "a red door", 1), said(DOG, "no", 1)])
    names = {f"bleu_{n}" for n in range(1, 5)} | {"meteor", "rouge_l", "cider"}
    assert set(scores.metrics) == {*names, "meteor_of_boxes"} and not scores.notes
    assert scores.metrics["meteor_of_boxes"] == pytest.approx(0.5, abs=0.02)
    assert scores.dense is not None
    assert scores.dense.mean == pytest.approx(0.51)


@with_java
def test_meteor_of_the_dense_task_reads_raw_texts() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    texts = ("A Dog's ball , on grass", "a dog's ball on the grass")
    own = captions.meteor([(texts[0], [texts[1]])], raw=True)
    _, scores = Meteor().compute_score({"0": [texts[1]]}, {"0": [texts[0]]})
    assert own == pytest.approx([float(one) for one in scores], abs=1e-9)


def test_without_java_the_rest_is_scored(no_java: None) -> None:
    scores = score_answers("dense", [said(DOOR, "a red door", 1)])
    assert scores.dense is None and scores.detection == pytest.approx(1)
    assert any("mAP left out" in note for note in scores.notes)
    assert scores.metrics["rouge_l"] == pytest.approx(1)


def test_images_are_found_by_name_or_number(images: Path) -> None:
    files = image_files(images)
    assert files["42"].name == "COCO_val2014_000000000042.jpg"
    assert files["7"] == files["7.png"] == images / "7.png"


def test_bad_input(files: dict[str, Path], images: Path, checkpoint: Path) -> None:
    model = Checkpoint.open(checkpoint).load()
    with pytest.raises(RegionCapError, match="has no image 42"):
        evaluate_task("trace", files["trace"], files["trace"].parent, model)
    with pytest.raises(RegionCapError, match="no folder of images"):
        evaluate_task("trace", files["trace"], images / "nowhere", model)
    with pytest.raises(RegionCapError, match="no metric clip"):
        score_answers("image", [said(DOOR, "x", 1)], ("clip",))
    with pytest.raises(RegionCapError, match="nothing to describe"):
        score_answers("image", [])


def test_the_command(
    files: dict[str, Path],
    images: Path,
    checkpoint: Path,
    tmp_path: Path,
    no_java: None,
) -> None:
    out = tmp_path / "out"
    arguments = [
        *("patchioner", "--task", "dense", "--annotations", str(files["dense"])),
        *("--images", str(images), "--weights", str(checkpoint), "--device", "cpu"),
        *("--metrics", "rouge_l", "--output", str(out)),
    ]
    result = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "**3** items of the dense task" in result.stdout
    lines = (out / "dense.captions.jsonl").read_text().splitlines()
    assert {json.loads(line)["image"] for line in lines} == {"42", "7"}
    assert json.loads((out / "dense.json").read_text())["items"] == 3
    assert "ROUGE" in (out / "dense.md").read_text().upper()
