"""Benchmarks of masks: folders and JSON files, carried on, scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from fiftyone_regioncap.evaluation.benchmarks.base import Tools
from fiftyone_regioncap.evaluation.benchmarks.options import RunOptions
from fiftyone_regioncap.evaluation.benchmarks.reading import BenchmarkError
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS
from fiftyone_regioncap.evaluation.benchmarks.report import BenchmarkReport
from fiftyone_regioncap.evaluation.benchmarks.running import run_benchmark
from fiftyone_regioncap.evaluation.benchmarks.scoring import score_file
from fiftyone_regioncap.models.registry import ModelSpec

pytestmark = pytest.mark.usefixtures("fiftyone_database")

FRAMES = 4


def values(frame: int, shift: int = 0) -> np.ndarray:
    """Object 1 moves to the right; object 2 stands, and leaves at the end."""
    found = np.zeros((48, 64), np.uint8)
    found[8:24, 6 + 4 * frame + shift : 22 + 4 * frame + shift] = 1
    if frame < 3:
        found[30:44, 40:56] = 2
    return found


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def objects(folder: Path, shift: int = 0) -> None:
    """Writes a folder a video, one image of object ids a frame."""
    for frame in range(FRAMES):
        save(values(frame, shift), folder / "walk" / f"{frame:05}.png")


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    folder = tmp_path / "davis"
    objects(folder / "Annotations" / "480p")
    for frame in range(FRAMES):
        shown = np.stack([values(frame) * 90 + 30] * 3, axis=2)
        save(shown, folder / "JPEGImages" / "480p" / "walk" / f"{frame:05}.jpg")
    return folder


def scored(name: str, folder: Path, predictions: Path) -> BenchmarkReport:
    return score_file(BENCHMARKS[name], predictions, Tools(folder))


def test_perfect_and_shifted_masks(davis: Path, tmp_path: Path) -> None:
    objects(tmp_path / "same")
    same = scored("davis", davis, tmp_path / "same")
    assert same.overall == pytest.approx(dict.fromkeys(same.overall, 1.0))
    assert same.counts["objects"] == 2
    objects(tmp_path / "moved", 4)
    moved = scored("davis", davis, tmp_path / "moved")
    # A quarter of object 1 is off: its IoU is 12 / 20; object 2 is right.
    assert moved.overall["j"] == pytest.approx((0.6 + 1) / 2)
    assert moved.overall["hota"] < 1 == moved.overall["idf1"]


def test_an_object_a_folder(davis: Path, tmp_path: Path) -> None:
    """SA-V's layout, with the same masks."""
    folder, said = tmp_path / "sav", tmp_path / "said"
    for frame in range(FRAMES):
        for index in (1, 2):
            own = (values(frame) == index).astype(np.uint8) * 255
            name = f"walk/{index:03}/{frame:05}.png"
            save(own, folder / "Annotations_6fps" / name)
            save(own, said / name)
    assert scored("sa-v", folder, said).overall["j_and_f"] == pytest.approx(1)


def test_youtube_vis(tmp_path: Path) -> None:
    """Tracks of a results file are assigned to true ones by their overlap."""

    def runs(index: int, shift: int = 0) -> list[Any]:
        made = []
        for frame in range(FRAMES):
            mask = np.asfortranarray(values(frame, shift) == index).astype(np.uint8)
            one = coco_mask.encode(mask)
            made.append({**one, "counts": one["counts"].decode()})
        return made

    names = [f"walk/{frame:05}.jpg" for frame in range(FRAMES)]
    entries = [{"video_id": 7, "segmentations": runs(index)} for index in (1, 2)]
    truth = {"videos": [{"id": 7, "file_names": names}], "annotations": entries}
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    results = tmp_path / "results.json"
    results.write_text(json.dumps(entries[::-1]))
    report = scored("youtube-vis", tmp_path, results)
    assert report.overall == pytest.approx(dict.fromkeys(report.overall, 1.0))


def test_run_by_a_propagator(davis: Path, tmp_path: Path) -> None:
    options = RunOptions(
        benchmark="davis", folder=str(davis), output=str(tmp_path / "out")
    )
    report = run_benchmark(options, ModelSpec("measured"), ModelSpec("flow"))
    assert report.overall["j"] > 0.5 and report.items == 1
    written = tmp_path / "out" / "predictions" / "walk"
    before = {path.name: path.stat().st_mtime_ns for path in written.iterdir()}
    assert len(before) == FRAMES
    again = run_benchmark(options, ModelSpec("measured"), ModelSpec("flow"))
    assert again.overall == report.overall  # and nothing was carried on again
    assert before == {path.name: path.stat().st_mtime_ns for path in written.iterdir()}


def test_masks_of_another_model_are_not_scored(davis: Path, tmp_path: Path) -> None:
    options = RunOptions(
        benchmark="davis", folder=str(davis), output=str(tmp_path / "out")
    )
    first = run_benchmark(options, ModelSpec("measured"), ModelSpec("flow"))
    for path in (tmp_path / "out" / "predictions").rglob("*.png"):
        save(np.zeros((48, 64), np.uint8), path)  # of a worse one
    other = ModelSpec("flow", options={"sharpen": False})
    with pytest.raises(BenchmarkError, match="made with another options; give another"):
        run_benchmark(options, ModelSpec("measured"), other)
    again = run_benchmark(
        replace(options, overwrite=True), ModelSpec("measured"), ModelSpec("flow")
    )
    assert again.overall == first.overall


def test_tracks_of_many_videos_are_numbered_by_video(tmp_path: Path) -> None:
    """A published file has thousands of tracks, more than a pixel can tell apart."""
    runs = coco_mask.encode(np.asfortranarray(values(0) == 1).astype(np.uint8))
    one = {**runs, "counts": runs["counts"].decode()}
    videos = [
        {"id": n, "file_names": [f"{n}/{f:05}.jpg" for f in range(2)]} for n in range(3)
    ]
    tracks = [{"video_id": n % 3, "segmentations": [one, one]} for n in range(300)]
    document = {"videos": videos, "annotations": tracks}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    items = list(BENCHMARKS["youtube-vis"].load(tmp_path))
    seen = {n for i in items for f in i.values["masks"].runs.values() for n in f}
    assert seen == set(range(1, 101))


def test_bad_masks(davis: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    (missing / "run").mkdir(parents=True)
    report = scored("davis", davis, missing)
    assert report.counts["missing"] == report.counts["unknown"] == 1
    assert report.overall["j"] == 0 and not report.ok
    small = tmp_path / "small"
    for frame in range(FRAMES):
        save(values(frame)[:20], small / "walk" / f"{frame:05}.png")
    with pytest.raises(BenchmarkError, match="64x20"):
        scored("davis", davis, small)
    with pytest.raises(BenchmarkError, match="Annotations"):
        scored("davis", tmp_path, missing)
