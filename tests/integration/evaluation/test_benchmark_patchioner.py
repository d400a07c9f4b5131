"""Patch-ioner's four tasks on small files of the published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap.captioning.patchioner.aggregation import BoxSet, Points, Whole
from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.patchioner.configuration import PatchionerOptions
from fiftyone_regioncap.evaluation import captions
from fiftyone_regioncap.evaluation.benchmarks import clip
from fiftyone_regioncap.evaluation.benchmarks.base import Answer, Item, Region, Tools
from fiftyone_regioncap.evaluation.benchmarks.media import media_files
from fiftyone_regioncap.evaluation.benchmarks.options import RunOptions
from fiftyone_regioncap.evaluation.benchmarks.patchioner import describe, region_of
from fiftyone_regioncap.evaluation.benchmarks.reading import BenchmarkError
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS
from fiftyone_regioncap.evaluation.benchmarks.report import BenchmarkReport
from fiftyone_regioncap.evaluation.benchmarks.running import run_benchmark
from fiftyone_regioncap.evaluation.captions import score_captions

pytestmark = pytest.mark.usefixtures("fiftyone_database", "no_java")

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
            {"image_id": 42, "bbox": [40, 2, 40, 50], "caption": "a brown pole"},
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
def no_java() -> Any:
    """Java takes its time to start; METEOR's numbers are compared elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions.shutil, "which", lambda name: None)
        yield


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


@pytest.fixture(scope="module")
def captioner(checkpoint: Path) -> PatchionerCaptioner:
    options = PatchionerOptions(compat="reference")
    return PatchionerCaptioner.from_pretrained(checkpoint, "cpu", options)


def files_of(task: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{task}.json").write_text(json.dumps(TASKS[task]))
    return folder


def run(
    task: str, folder: Path, images: Path, captioner: Any, **more: Any
) -> BenchmarkReport:
    options = RunOptions(
        benchmark=f"patchioner-{task}",
        folder=str(files_of(task, folder / task)),
        media=str(images),
        output=str(folder / "out"),
        **more,
    )
    return run_benchmark(options, captioner)


def test_annotation_files(tmp_path: Path) -> None:
    items = {
        task: {
            item.id: item
            for item in BENCHMARKS[f"patchioner-{task}"].load(
                files_of(task, tmp_path / task)
            )
        }
        for task in TASKS
    }
    region = region_of(items["trace"]["42_0"], height=100, width=200)
    assert isinstance(region, Points)
    np.testing.assert_allclose(region.points, [[100, 25]])
    boxes = [item.regions[0].boxes[0] for item in items["dense"].values()]
    assert (40, 2, 41, 50) in boxes  # a line gets an area
    first, second = items["region-set"]["42_0"], items["region-set"]["42_1"]
    assert region_of(first, 50, 50) == BoxSet(((0, 0, 10, 10), (20, 0, 30, 10)))
    assert region_of(second, 50, 50) == Whole()
    assert items["image"]["42"].references == ("a dog on the grass", "one brown dog")


def test_traces_made_of_localized_narratives(tmp_path: Path) -> None:
    points = [{"x": n / 20, "y": 0.5, "t": n} for n in range(20)]
    entry = {"image_id": 42, "caption": "a dog", "traces": [points[:8], points[8:]]}
    path = tmp_path / "coco_val_localized_narratives.jsonl"
    path.write_text(json.dumps(entry) + "\n")
    (item,) = BENCHMARKS["patchioner-trace"].load(tmp_path)
    kept = item.regions[0].points
    assert kept is not None and item.media == "42"
    assert [x * 20 for x, _ in kept] == pytest.approx(range(3, 17))
    path.write_text(json.dumps({"caption": "a dog"}) + "\n")
    with pytest.raises(BenchmarkError, match="Localized Narratives"):
        list(BENCHMARKS["patchioner-trace"].load(tmp_path))


def test_image_captions_from_another_file(tmp_path: Path) -> None:
    one = {"images": TASKS["image"]["images"][:1]}
    (tmp_path / "coco-test.json").write_text(json.dumps(one))
    spoken = {"annotations": TASKS["image"]["annotations"]}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(spoken))
    (item,) = BENCHMARKS["patchioner-image"].load(tmp_path)
    assert item.references == ("a dog on the grass", "one brown dog")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"a": 3, "annotations": 1}'])
def test_other_files(task: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(BenchmarkError, match=r"file\.json"):
        list(BENCHMARKS[f"patchioner-{task}"].load(tmp_path))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_files_to_scores(
    task: str, tmp_path: Path, images: Path, captioner: PatchionerCaptioner
) -> None:
    report = run(task, tmp_path, images, captioner)
    assert report.items == {"image": 2}.get(task, 3)
    assert report.counts.get("failed", 0) == (task == "trace")  # of the empty trace
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    said = {one["id"]: one["pred"] for one in map(json.loads, lines)}
    items = list(BENCHMARKS[f"patchioner-{task}"].load(tmp_path / task))
    texts = {
        key: pred["caption"] if isinstance(pred, dict) else pred
        for key, pred in said.items()
    }
    expected = score_captions(
        {item.id: texts[item.id] for item in items},
        {item.id: item.references for item in items},
        ("bleu", "rouge_l", "cider"),
    ).overall
    names = [name for name in expected if name in report.overall]
    assert names == list(expected)
    assert {n: report.overall[n] for n in names} == pytest.approx(expected)
    assert ("detection_map" in report.overall) == (task == "dense")
    if task == "dense":
        # Places are given, so that every one of the three is found.
        assert report.overall["detection_map"] == pytest.approx(1)
        assert all(0 <= pred["score"] <= 1 for pred in said.values())
    text = report.to_markdown()
    assert "T2D" in text or task == "dense"  # whose row needs METEOR


@pytest.mark.parametrize("baseline", ["crop", "cls", "image"])
def test_baselines(
    baseline: str, tmp_path: Path, images: Path, captioner: PatchionerCaptioner
) -> None:
    folder = files_of("region-set", tmp_path / "region-set")
    items = list(BENCHMARKS["patchioner-region-set"].load(folder))
    found = list(describe(captioner, items, images, baseline))
    assert len(found) == len(items) and not any(one.error for one in found)
    if baseline == "image":
        assert found[0].text == found[1].text  # of the same picture


def test_one_pass_per_image(
    tmp_path: Path, images: Path, captioner: PatchionerCaptioner
) -> None:
    items = list(BENCHMARKS["patchioner-trace"].load(files_of("trace", tmp_path / "t")))
    missing = [*items, Item("x", "nowhere.png", {0: Region()}, ("x",))]
    *found, last = describe(captioner, missing, images)
    assert [one.error is not None for one in found] == [False, True, False]
    assert "nowhere.png" in str(last.error)
    outside = Item("y", "7", {0: Region(boxes=((900, 900, 910, 910),))}, ("x",))
    (one,) = describe(captioner, [outside], images, "crop")
    assert "outside" in str(one.error)


def test_media_are_found_by_name_or_number(images: Path) -> None:
    files = media_files(images)
    assert files["42"].name == "COCO_val2014_000000000042.jpg"
    assert files["7"] == files["7.png"] == images / "7.png"
    with pytest.raises(BenchmarkError, match="no folder"):
        media_files(images / "nowhere")


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{one}</w>" for one in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPConfig(
        text_config={
            **small,
            "num_attention_heads": 2,
            "vocab_size": len(words),
            "eos_token_id": len(words) - 1,
            "bos_token_id": len(words) - 2,
            "pad_token_id": len(words) - 1,
        },
        vision_config={
            **small,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def test_clip_scores(
    clip_model: Path, images: Path, tmp_path: Path, captioner: PatchionerCaptioner
) -> None:
    models = {"clip": str(clip_model), "pac": str(clip_model)}
    report = run("region-set", tmp_path, images, captioner, models=models)
    same = [report.overall["clip_s"] / 2.5, report.overall["pac_s"] / 2]
    assert same[0] == pytest.approx(same[1])
    assert -1 <= report.overall["refpac_text"] <= 1
    scorer = clip.ClipScorer(clip_model)
    item = Item("1", "7", {0: Region(boxes=((5, 5, 60, 50),))}, ("a dog", "a cat"))
    tools = Tools(tmp_path, images, models=models)
    empty = clip.Scores({})
    overall = clip.add_clip_scores(empty, [Answer(item, "a cat")], tools).overall
    assert overall["refpac_text"] == pytest.approx(1, abs=1e-5)  # the nearest counts
    picture = clip.draw(np.asarray(Image.open(images / "7.png")), item)
    assert tuple(picture[5, 30]) == (255, 0, 0)
    (text,), (shown,) = scorer.texts(["a cat"]), scorer.pictures([picture])
    assert overall["clip_s"] == pytest.approx(2.5 * max(0, float(text @ shown)))
