"""Two videos with tracks and captions that are hard on formats, in a real database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.metadata import video_metadata
from fiftyone_regioncap.dataset.tracks import TrackWriter, read_masks

HEIGHT, WIDTH, FRAMES = 72, 96, 24

HARD = (
    'A "red" disc\nthat moves; 100 % <b>bold</b> {braces} & a \\ backslash\t🦊 '
    "مرحبا بالعالم ünïcödé"
)


def mask(frame: int, index: int) -> np.ndarray:
    """Where an object is: 7 walks and is hidden on frames 5 and 6, 2 stands still."""
    full = np.zeros((HEIGHT, WIDTH), dtype=bool)
    if index == 7:
        full[21:44, 8 + frame : 31 + frame] = True
        full[30, 10 + frame : 12 + frame] = False
    else:
        full[40:, 60:] = True  # up to the last pixel
    return full


def walk() -> Iterator[FrameMasks]:
    for frame in range(FRAMES):
        visible = {
            7: ObjectMask(None if frame in (5, 6) else mask(frame, 7), 0.75),
            2: ObjectMask(mask(frame, 2) if frame >= 3 else None, 1.0),
        }
        yield FrameMasks(frame, visible, frozenset({7} if frame == 0 else ()))


RECORDS = [
    CaptionRecord(
        7,
        (0, FRAMES - 1),
        "disc",
        HARD,
        confidence=0.875,
        tags=(("red", 0.5),),
        model="model/a",
        revision="abc",
        frames_used=(0, 12),
        review="edited",
        source_caption="a disc",
    ),
    CaptionRecord(2, (3, 11), "brick/wall", "A blue brick.", confidence=0.5),
    CaptionRecord(2, (12, FRAMES - 1), "brick/wall", "It stands. " * 900),
]


def make(videos: list[Path], *, filled: bool) -> fo.Dataset:
    dataset = fo.Dataset()
    for video in videos:
        sample = fo.Sample(filepath=str(video))
        sample.metadata = video_metadata(sample)
        dataset.add_sample(sample)
        if filled:
            labels = {7: "disc", 2: "brick/wall"}
            with TrackWriter(sample, "tracks", labels=labels) as writer:
                for masks in walk():
                    writer.write(masks)
            write_captions(sample, "captions", RECORDS, tracks_field="tracks")
    return dataset


@pytest.fixture
def dataset(fiftyone_database: str, videos: list[Path]) -> Iterator[fo.Dataset]:
    """Both videos, with tracks and captions, to be changed."""
    made = make(videos, filled=True)
    yield made
    made.delete()


@pytest.fixture
def empty(fiftyone_database: str, videos: list[Path]) -> Iterator[fo.Dataset]:
    """Both videos, with nothing."""
    made = make(videos, filled=False)
    yield made
    made.delete()


@pytest.fixture(scope="session")
def source(fiftyone_database: str, videos: list[Path]) -> Iterator[fo.Dataset]:
    """Both videos, with tracks and captions, which no test changes."""
    made = make(videos, filled=True)
    yield made
    made.delete()


@pytest.fixture(scope="session")
def exported(
    source: fo.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Exports both videos, each format once with the same options, for reading."""
    done: dict[str, Path] = {}

    def export(name: str, **options: Any) -> Path:
        key = json.dumps([name, options], sort_keys=True)
        if key not in done:
            folder = tmp_path_factory.mktemp(name) / "out"
            summary = api.export(source, name, folder, options=options, progress=False)
            assert summary.ok and summary.videos == 2, summary.failures
            done[key] = folder
        return done[key]

    return export


@pytest.fixture(scope="session")
def contents_of() -> Callable[[fo.Dataset], dict[str, Any]]:
    """Gives masks and captions by video: what every format has to bring back."""

    def read(dataset: fo.Dataset) -> dict[str, Any]:
        dataset.reload()
        found = {}
        for sample in dataset:
            wanted = {frame: {2, 7} for frame in range(FRAMES)}
            masks = {
                (frame, index): own.tobytes()
                for frame, by_index in read_masks(sample, "frames.tracks", wanted)
                for index, own in by_index.items()
            }
            captions = {
                record.key: record.caption
                for record in read_captions(sample, "captions")
            }
            found[Path(sample.filepath).name] = {"masks": masks, "captions": captions}
        return found

    return read
