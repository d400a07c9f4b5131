"""The examples of the docs are what they say: they import what exists, and run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from shutil import copyfile

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.metadata import video_metadata
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.exporters import ExportOptions
from tests.support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DATASETS = ("street", "my-dataset")
"""Names that the examples load."""


@dataclass(frozen=True)
class Example:
    """A block of Python on a page.

    Attributes:
        page: The page's name.
        line: Where it begins.
        code: Its text.
        runs: Whether it isn't marked as one that cannot run here.
    """

    page: str
    line: int
    code: str
    runs: bool


def examples() -> Iterator[Example]:
    block = re.compile(r"(<!-- not run: [^>]+ -->\n)?```python\n(.*?)```", re.DOTALL)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in block.finditer(text):
            line = text.count("\n", 0, found.start(2)) + 1
            yield Example(page.name, line, found[2], found[1] is None)


EXAMPLES = list(examples())
SLOW = ("README.md", "evaluation.md")
ELSEWHERE = ("labels.md",)
"""Pages whose examples run, with checks of what they find, in dataset/test_docs.py."""
RUNNING = [
    pytest.param(page, marks=pytest.mark.slow if page in SLOW else ())
    for page in dict.fromkeys(one.page for one in EXAMPLES if one.runs)
    if page not in ELSEWHERE
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: f"{one.page}:{one.line}")
def test_what_an_example_imports_exists(example: Example) -> None:
    for node in ast.walk(ast.parse(example.code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            names = [one.name for one in node.names]
            # As `from` does: a name may be a module that nothing has imported yet.
            missing = [
                name
                for name in names
                if not hasattr(module, name)
                and importlib.util.find_spec(f"{node.module}.{name}") is None
            ]
            assert not missing, node.module


@pytest.fixture
def dataset(
    fiftyone_database: str,
    videos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[fo.Dataset]:
    """A video of each split, with prompts, tracks and captions of two objects."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGIONCAP_VIDEO_BACKEND", "pyav")
    dataset = fo.Dataset()
    for split in ("train", "val"):
        options = ExportOptions("videorefer", "out", val=0.1)
        paths = (tmp_path / f"{number}.mp4" for number in count())
        path = next(one for one in paths if options.split(str(one)) == split)
        copyfile(videos[0], path)
        sample = fo.Sample(filepath=str(path))
        sample.metadata = video_metadata(sample)
        box = fo.Detection(label="disc", bounding_box=[0.1, 0.3, 0.3, 0.3], index=3)
        sample.frames[1] = fo.Frame(prompts=fo.Detections(detections=[box]))
        dataset.add_sample(sample)
        fill(sample)
    try:
        yield dataset
    finally:
        dataset.delete()


def fill(sample: fo.Sample) -> None:
    height, width = sample.metadata.frame_height, sample.metadata.frame_width
    left = np.zeros((height, width), dtype=bool)
    left[:, : width // 2] = True
    with TrackWriter(sample, "tracks", labels={3: "car", 4: "dog"}) as writer:
        for frame in range(3):
            masks = {3: ObjectMask(left, 0.9), 4: ObjectMask(~left, 0.2)}
            writer.write(FrameMasks(frame, masks))
    texts = {3: "A red car turning left.", 4: "A brown dog."}
    captions = [
        CaptionRecord(index, (0, 2), caption=text, confidence=index / 10)
        for index, text in texts.items()
    ]
    write_captions(sample, "captions", captions, tracks_field="tracks")
    write_captions(sample, "truth", captions)


@pytest.mark.parametrize("page", RUNNING)
def test_examples_of_a_page_run_one_after_the_other(
    page: str, dataset: fo.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[10:30, 20:40] = 200
    values = {
        "dataset": dataset,
        "frame": frame,
        "mask_or_box": (20, 10, 40, 30),
        "__name__": __name__,  # dataclasses look for their module
    }
    for example in EXAMPLES:
        if example.page == page and example.runs:
            code = example.code
            for name in DATASETS:
                code = code.replace(f'"{name}"', repr(dataset.name))
            where = f"{ROOT.name}/{page}:{example.line}"
            exec(compile("\n" * (example.line - 1) + code, where, "exec"), values)
