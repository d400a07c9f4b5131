"""Every benchmark by the shell's commands: prepared, run, scored, shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import fiftyone as fo
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask

from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.evaluation import captions
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    read_segmentation,
)
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS
from tests.support.judge import endpoint

pytestmark = pytest.mark.usefixtures("fiftyone_database", "no_java")

FOLDERS = {
    "dlc-bench": "dlc_bench",
    "videorefer-bench-d": "videorefer_bench_d",
    "videorefer-bench-q": "videorefer_bench_q",
    "hc-stvg": "hc_stvg",
    "plm-rcap": "plm_videobench",
    "plm-rdcap": "plm_videobench",
    "plm-rtloc": "plm_videobench",
    "refcocog": "refcocog",
    "vg-regions": "vg_region",
    "vg-dense": "dense_captioning",
    "ref-l4": "ref_l4",
    "lvis-keywords": "lvis_keywords",
    "paco-keywords": "paco_keywords",
    "ovad": "ovad",
    "coco-recognition": "coco_recognition",
    "ureca": "ureca_testset",
}
"""Folder of the samples, by benchmark."""


@pytest.fixture(scope="module")
def no_java() -> Iterator[None]:
    """Java takes its time to start; elsewhere its numbers are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions.shutil, "which", lambda name: None)
        yield


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    def answer(body: dict[str, Any]) -> str:
        text = json.dumps(body["messages"])
        return '{"score": 5}' if "JSON" in text else "A"

    with endpoint(answer) as (url, _):
        yield url


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(110):
            pixels = np.full((48, 64, 3), number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def annotations(name: str, samples: Path, folder: Path) -> Path:
    """Copies the files of a benchmark, without predictions and expected scores."""
    source = samples / FOLDERS[name]
    if not source.is_dir():
        pytest.skip(f"no folder {source}")
    for file in BENCHMARKS[name].files:
        for path in source.glob(file.name):
            if path.is_file() and "expected" not in path.name:
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    (folder / "detections.json").unlink(missing_ok=True)
    return folder


def make_media(name: str, folder: Path, media: Path, video: Path) -> None:
    """Makes an image or a video for each item."""
    for item in BENCHMARKS[name].load(folder):
        path = media / (item.media or "x.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mp4":
            shutil.copy(video, path)
        elif BENCHMARKS[name].unit == "track":
            path.mkdir(exist_ok=True)
            for number in range(max(item.regions, default=0) + 1):
                frame = np.zeros((48, 64, 3), np.uint8)
                Image.fromarray(frame).save(path / f"{number:05}.png")
        else:
            path = path if path.suffix else path.with_suffix(".png")
            mask = next(iter(item.regions.values())).segmentation
            if path.exists() and not isinstance(mask, dict):
                continue
            size = mask["size"] if isinstance(mask, dict) else (128, 160)
            pixels = np.full((*size, 3), 90, np.uint8)
            Image.fromarray(pixels).save(path)


def regioncap(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.output


def entities(folder: Path) -> None:
    """Writes Flickr30k Entities of a picture, in its files' layout."""
    for name, text in {
        "Sentences/1.txt": "[/EN#5/people A man] with [/EN#6/other a hat] .\n",
        "Annotations/1.xml": "<annotation><object><name>5</name><bndbox><xmin>1</xmin>"
        "<ymin>2</ymin><xmax>40</xmax><ymax>60</ymax></bndbox></object><object>"
        "<name>6</name><nobndbox>1</nobndbox></object></annotation>",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(text)


def values(frame: int) -> np.ndarray:
    """One object that moves to the right."""
    found = np.zeros((48, 64), np.uint8)
    found[10:30, 10 + frame : 30 + frame] = 1
    return found


def save(values: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def masks_of(name: str, folder: Path) -> None:
    """Writes a video with its masks in the layout of a benchmark."""
    images, masks = {
        "davis": ("JPEGImages/480p/walk", "Annotations/480p/walk"),
        "mose": ("JPEGImages/walk", "Annotations/walk"),
        "sa-v": ("JPEGImages_24fps/walk", "Annotations_6fps/walk/000"),
        "youtube-vis": ("JPEGImages/walk", None),
    }[name]
    runs = []
    for frame in range(3):
        save(values(frame) * 200, folder / images / f"{frame:05}.jpg")
        if masks is not None:
            save(values(frame), folder / masks / f"{frame:05}.png")
        one = coco_mask.encode(np.asfortranarray(values(frame)))
        runs.append({**one, "counts": one["counts"].decode()})
    if masks is None:
        names = [f"walk/{frame:05}.jpg" for frame in range(3)]
        truth = {
            "videos": [{"id": 7, "file_names": names}],
            "annotations": [{"video_id": 7, "segmentations": runs}],
        }
        (folder / "instances.json").write_text(json.dumps(truth))


def test_flickr30k_entities(tmp_path: Path) -> None:
    entities(tmp_path)
    Image.new("RGB", (80, 80)).save(tmp_path / "1.jpg")
    (item,) = BENCHMARKS["flickr30k-entities"].load(tmp_path)
    assert item.references == ("A man",)  # the hat has no box
    report = regioncap(
        *("benchmark", "run", "flickr30k-entities", "--from", str(tmp_path)),
        *("--captioner", "measured", "--output", str(tmp_path / "out")),
    )
    assert report["items"] == 1 and "rouge_l" in report["overall"]


@pytest.mark.parametrize("name", ["davis", "mose", "sa-v", "youtube-vis"])
def test_masks_of_videos(tmp_path: Path, name: str) -> None:
    masks_of(name, tmp_path)
    report = regioncap(
        *("benchmark", "run", name, "--from", str(tmp_path)),
        *("--propagator", "flow", "--output", str(tmp_path / "out")),
    )
    assert report["overall"]["j"] > 0.5
    again = regioncap(
        *("benchmark", "score", name, "--from", str(tmp_path)),
        *("--captions", str(tmp_path / "out" / "predictions")),
        *("--output", str(tmp_path / "again")),
    )
    assert again["overall"] == report["overall"]


BOXES = {"image_id": 7, "bbox": [1, 2, 30, 40], "caption": "a dog"}
TASKS = {
    "trace": {"7": {"captions": ["a dog"], "traces": [[{"x": 0.5, "y": 0.5, "t": 0}]]}},
    "dense": {"images": [{"id": 7}], "annotations": [BOXES]},
    "region-set": {"7": {"a dog": [[0, 0, 10, 10], [20, 0, 30, 10]]}},
    "image": {"images": [{"id": 7}], "annotations": [BOXES]},
}


@pytest.mark.parametrize("task", TASKS)
def test_patchioner(tmp_path: Path, checkpoint: Path, task: str) -> None:
    (tmp_path / f"{task}.json").write_text(json.dumps(TASKS[task]))
    Image.new("RGB", (90, 60)).save(tmp_path / "7.png")
    report = regioncap(
        *("benchmark", "run", f"patchioner-{task}", "--from", str(tmp_path)),
        *("--captioner", "patchioner", "--captioner-weights", str(checkpoint)),
        *("--output", str(tmp_path / "out")),
    )
    assert report["items"] == 1 and report["settings"]["options"]["compat"]


def test_list() -> None:
    listed = regioncap("benchmark", "list")
    assert [one["name"] for one in listed] == list(BENCHMARKS)
    told = CliRunner().invoke(main, ["benchmark", "list", "dlc-bench"]).stdout
    assert "CC BY-NC-SA 4.0" in told and "DAM-3B released: positive 51" in told


def test_a_judge_that_sees_the_pictures(samples: Path, tmp_path: Path) -> None:
    source = samples / "dlc_bench"
    if not source.is_dir():
        pytest.skip(f"no folder {source}")
    with endpoint(lambda body: "A") as (url, asked):
        report = regioncap(
            *("benchmark", "score", "dlc-bench", "--from", str(source)),
            *("--captions", str(source / "captions.json"), "--judge", url),
            *("--judge-pictures", "--output", str(tmp_path)),
        )
    content = asked[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    assert "in this image." in content[-1]["text"] and report["judge"]["calls"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [("zzzz", "no mask"), ([0, 4, 4], "no mask"), ([-4, 20], "no mask")],
)
def test_damaged_masks(counts: Any, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        read_segmentation({"size": [4, 4], "counts": counts}, 4, 4)


@pytest.mark.parametrize("name", FOLDERS)
def test_from_published_files_to_a_table(
    name: str, samples: Path, tmp_path: Path, video: Path, judge: str
) -> None:
    benchmark = BENCHMARKS[name]
    folder = annotations(name, samples, tmp_path / "files")
    media = tmp_path / "media"
    if name == "ureca":  # whose masks are in files of their own
        for item in benchmark.load(folder):
            mask = {"size": [4, 4], "counts": [0, 8, 8]}
            one = [{"id": 1000 + n, "segmentation": mask} for n in range(99)]
            content = json.dumps({"annotations": one})
            (folder / f"{item.media}.json").write_text(content)
    make_media(name, folder, media, video)
    made = None
    if name != "videorefer-bench-q":  # folders of frames, which the App can't show
        made = regioncap(
            *("benchmark", "prepare", name, "--from", str(folder)),
            *("--media", str(media), "--overwrite"),
        )
    captioner = ["--captioner", "measured"]
    if benchmark.follows:
        captioner = ["--captioner", "openai", "--captioner-weights", judge]
        captioner += ["--captioner-option", "model=stand-in"]
    place = ["--from", str(folder), "--media", str(media)] if made is None else []
    judged = ["--judge", judge] if "judge" in benchmark.needs else []
    output = tmp_path / "out"
    report = regioncap(
        *("benchmark", "run", name, *captioner, *judged, *place),
        *("--output", str(output), "--key", "ours"),
    )
    items = [item.id for item in benchmark.load(folder)]
    assert report["items"] == len(items) and report["overall"]
    lines = (output / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == items
    text = (output / "report.md").read_text()
    assert benchmark.title in text and "this run" in text
    assert (output / "report.html").stat().st_size > 1000
    again = regioncap(
        *("benchmark", "score", name, *judged, *place),
        *("--captions", str(output / "predictions.jsonl")),
        *("--output", str(tmp_path / "again"), "--key", "again"),
    )
    assert again["overall"] == report["overall"]
    if made is not None:
        dataset = fo.load_dataset(made["dataset"])
        assert dataset.has_run("ours") and made["items"] == len(items)
        scores = dataset.values(f"truth.{_list(dataset)}.ours_score", unwind=True)
        assert len(scores) == len(items)
        dataset.delete()


def _list(dataset: fo.Dataset) -> str:
    return dataset.get_field("truth").document_type._LABEL_LIST_FIELD
