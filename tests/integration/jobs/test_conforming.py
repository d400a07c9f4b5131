"""Copies of videos that FiftyOne's App shows frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.dataset.metadata import correct_metadata
from fiftyone_regioncap.video.reader import VideoReader
from tests.support.videos import number_of, numbered, write_video

UNEVEN = [0, 40, 80, 500, 540, 580, 1000, 1040]
LATE = [400 + 40 * number for number in range(8)]


@pytest.fixture
def dataset(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    """A video of variable rate, one that starts late, and one that is right."""
    images = [numbered(number) for number in range(8)]
    dataset = fo.Dataset()
    for name, times in (("uneven", UNEVEN), ("late", LATE), ("right", None)):
        path = write_video(tmp_path / f"{name}.mp4", images, times=times, audio=True)
        sample = fo.Sample(filepath=str(path))
        box = fo.Detection(label="dog", bounding_box=[0, 0, 1, 1], index=4)
        sample.frames[4]["tracks"] = fo.Detections(detections=[box])
        dataset.add_sample(sample)
    yield dataset
    dataset.delete()


def test_frames_and_labels_stay_and_the_app_shows_them_right(
    dataset: fo.Dataset, tmp_path: Path
) -> None:
    summary = api.conform(dataset, progress=False)
    assert summary.ok, summary.failures
    assert (summary.conformed, summary.skipped, summary.notes) == (2, 1, [])
    dataset.reload()
    for sample, name in zip(dataset, ("uneven", "late", "right"), strict=True):
        path = Path(sample.filepath)
        if name == "right":
            assert path.name == "right.mp4" and sample.original_filepath is None
            continue
        assert path == tmp_path / f"{name}-constant.mp4"
        assert sample.original_filepath == str(tmp_path / f"{name}.mp4")
        assert Path(sample.original_filepath).exists()
        assert sample.frames[4].tracks.detections[0].label == "dog"
        with VideoReader(path) as reader:
            assert [number_of(frame) for frame in reader] == list(range(8))
            assert sample.metadata.frame_rate == pytest.approx(reader.fps)
            assert reader.timeline.misplaced() == 0
        assert correct_metadata(sample) == []
    assert not list(tmp_path.glob("*.part*"))
    assert api.conform(dataset, progress=False).skipped == 3


def test_no_file_is_overwritten(dataset: fo.Dataset, tmp_path: Path) -> None:
    mine = tmp_path / "copies" / "late-constant.mp4"
    mine.parent.mkdir()
    mine.write_text("mine")
    api.conform(dataset, output_dir=str(mine.parent), progress=False)
    assert mine.read_text() == "mine"
    dataset.reload()
    names = [Path(path).name for path in dataset.values("filepath")]
    assert names == ["uneven-constant.mp4", "late-constant-2.mp4", "right.mp4"]
