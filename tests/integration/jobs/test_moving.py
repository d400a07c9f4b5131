"""Masks on disk and in the database, and what a video may hold of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset import mask_storage, tracks
from fiftyone_regioncap.dataset.tracks import TrackWriter, read_masks

FRAMES = 24
MASKS = np.random.default_rng(0).random((FRAMES, 72, 96)) > 0.5


@pytest.fixture
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path: Path, monkeypatch
) -> Iterator[fo.Dataset]:
    """A video."""
    monkeypatch.setattr(fo.config, "default_dataset_dir", str(tmp_path))
    dataset = fo.Dataset()
    dataset.add_sample(fo.Sample(filepath=str(videos[0])))
    yield dataset
    dataset.delete()


def write(dataset: fo.Dataset, count: int = FRAMES, **options) -> list[bool]:
    """Writes masks; returns whether each frame's is in the database."""
    with TrackWriter(dataset.first(), "tracks", chunk_frames=8, **options) as writer:
        for frame in range(count):
            writer.write(FrameMasks(frame, {1: ObjectMask(MASKS[frame], 1.0)}))
    return inline(dataset)


def inline(dataset: fo.Dataset) -> list[bool]:
    dataset.reload()
    found = dataset.first().frames
    return [
        found[number].tracks.detections[0].mask_path is None for number in sorted(found)
    ]


def read(dataset: fo.Dataset) -> np.ndarray:
    wanted = {frame: [1] for frame in range(FRAMES)}
    found = dict(read_masks(dataset.first(), "tracks", wanted))
    return np.stack([found[frame][1] for frame in range(FRAMES)])


@pytest.mark.parametrize(
    ("limit", "options", "on_disk"),
    [
        pytest.param(2**20, {}, 0, id="they fit"),
        pytest.param(20_000, {}, FRAMES, id="the estimate is too large"),
        pytest.param(
            20_000, {"expected_frames": 8}, FRAMES - 8, id="they outgrow the estimate"
        ),
        pytest.param(20_000, {"mask_storage": "inline"}, 0, id="inline was asked for"),
    ],
)
def test_masks_of_a_video_that_are_too_many_go_to_disk(
    dataset: fo.Dataset, monkeypatch, limit: int, options: dict, on_disk: int
) -> None:
    monkeypatch.setattr(tracks, "VIDEO_BYTES", limit)
    stored = write(dataset, **options)
    assert stored == [True] * (FRAMES - on_disk) + [False] * on_disk
    assert np.array_equal(read(dataset), MASKS)


@pytest.mark.slow
def test_queries_of_fiftyone_work_on_large_videos(dataset: fo.Dataset) -> None:
    """Three frames of 6 MB each, as masks of many objects or frames are together."""
    side = 6000
    rng = np.random.default_rng(0)
    with TrackWriter(dataset.first(), "tracks", expected_frames=3) as writer:
        for frame in range(3):
            bits = np.frombuffer(rng.bytes(side * side // 8), np.uint8)
            mask = np.unpackbits(bits).reshape(side, side).astype(bool)
            writer.write(FrameMasks(frame, {1: ObjectMask(mask, 1.0)}))
    dataset.reload()
    view = dataset.filter_labels("frames.tracks", fo.ViewField("index") == 1)
    assert view.count("frames.tracks.detections") == 3
    assert len(dataset.match_frames(fo.ViewField("frame_number") > 1)) == 1


def test_what_other_fields_hold_counts_too(dataset: fo.Dataset, monkeypatch) -> None:
    sample = dataset.first()
    sample.frames[1]["others"] = fo.Heatmap(
        map=np.random.default_rng(0).random((50, 50))
    )
    sample.save()
    monkeypatch.setattr(tracks, "VIDEO_BYTES", 40_000)
    assert write(dataset) == [False] * FRAMES


def test_masks_move_to_disk_and_back(dataset: fo.Dataset, tmp_path: Path) -> None:
    write(dataset)
    before = dataset.first().frames[5].tracks.detections[0].to_dict()
    moved = api.move_masks(dataset, "disk", progress=False)
    assert moved.ok and moved.moved == FRAMES
    assert inline(dataset) == [False] * FRAMES
    assert np.array_equal(read(dataset), MASKS)
    assert len(list(tmp_path.glob("**/*.png"))) == FRAMES
    assert api.move_masks(dataset, "disk", progress=False).moved == 0
    assert api.move_masks(dataset, "inline", progress=False).moved == FRAMES
    assert inline(dataset) == [True] * FRAMES
    assert np.array_equal(read(dataset), MASKS)
    assert not list(tmp_path.glob("**/*.png"))
    after = dataset.first().frames[5].tracks.detections[0].to_dict()
    assert {**after, "mask": None} == {**before, "mask": None}


def test_masks_that_are_too_many_stay_on_disk(dataset: fo.Dataset, monkeypatch) -> None:
    write(dataset, mask_storage="disk")
    monkeypatch.setattr(mask_storage, "VIDEO_BYTES", 1000)
    summary = api.move_masks(dataset, "inline", progress=False)
    assert "leave them on disk" in summary.failures[0].error
    assert inline(dataset) == [False] * FRAMES
