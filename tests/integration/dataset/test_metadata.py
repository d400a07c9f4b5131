from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import av
import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.dataset.metadata import (
    correct_metadata,
    describe,
    frame_size,
    video_metadata,
)
from tests.support.videos import numbered, write_video


@pytest.fixture
def video(tmp_path: Path) -> fo.Sample:
    """A video of 12 frames of 48 x 64 at 10 frames a second."""
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(12):
            image = np.full((48, 64, 3), 20 * shade, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return fo.Sample(filepath=str(path))


def test_metadata_without_ffprobe(
    video: fo.Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    metadata = video_metadata(video)
    assert isinstance(metadata, fo.VideoMetadata)
    assert (metadata.frame_width, metadata.frame_height) == (64, 48)
    assert metadata.total_frame_count == 12
    assert metadata.frame_rate == pytest.approx(10)
    assert metadata.duration == pytest.approx(1.2)
    assert metadata.size_bytes == Path(video.filepath).stat().st_size
    assert metadata.mime_type == "video/mp4"


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(None, id="none"),
        pytest.param(fo.VideoMetadata(size_bytes=1), id="of a tool that didn't look"),
        pytest.param(
            fo.VideoMetadata(frame_height=64, frame_width=48), id="sides swapped"
        ),
    ],
)
def test_the_frame_size_is_that_of_the_file(
    video: fo.Sample, metadata: fo.VideoMetadata | None
) -> None:
    video.metadata = metadata
    assert frame_size(video) == (48, 64)


WRONG = {
    "sides of a rotated video swapped": (
        {"frame_width": 48, "frame_height": 64},
        ["frame width 48, not 64", "frame height 64, not 48"],
    ),
    "WebM without a duration": (
        {"total_frame_count": -25},
        ["total frame count -25, not 12"],
    ),
    "MPEG-PS": ({"total_frame_count": 11}, ["total frame count 11, not 12"]),
    "another rate": ({"frame_rate": 30.0}, ["frame rate 30.0, not 10.0"]),
}


@pytest.fixture
def dataset(video: fo.Sample, fiftyone_database: str) -> Iterator[fo.Dataset]:
    dataset = fo.Dataset()
    dataset.add_sample(video)
    yield dataset
    dataset.delete()


@pytest.mark.parametrize("case", WRONG)
def test_wrong_metadata_is_corrected_and_said(
    dataset: fo.Dataset, video: fo.Sample, case: str
) -> None:
    wrong, said = WRONG[case]
    right = video_metadata(video)
    video.metadata = fo.VideoMetadata(**{**right.to_dict(), "_cls": None, **wrong})
    video.save()
    (note,) = correct_metadata(video)
    assert all(part in note for part in ("video.mp4", *said))
    assert video.metadata == right
    dataset.reload()
    assert dataset.first().metadata.to_dict() == right.to_dict()
    assert correct_metadata(video) == []


def test_absent_metadata_is_stored_without_a_word(
    dataset: fo.Dataset, video: fo.Sample
) -> None:
    assert correct_metadata(video) == []
    assert dataset.first().metadata.total_frame_count == 12


def test_the_stored_metadata_counts_where_the_file_is_gone(
    dataset: fo.Dataset, video: fo.Sample
) -> None:
    correct_metadata(video)
    Path(video.filepath).unlink()
    assert describe(video).metadata.total_frame_count == 12
    video.metadata.total_frame_count = -25
    with pytest.raises(VideoError, match="no such file"):
        describe(video)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([0, 100, 200, 800, 900], "2 of 5 frames .* has a variable frame rate"),
        ([400, 440, 480, 520, 560], "4 of 5 frames .* starts late"),
    ],
    ids=["variable rate", "late start"],
)
def test_labels_that_the_app_shows_elsewhere(
    fiftyone_database: str, tmp_path: Path, times: list[int], said: str
) -> None:
    images = [numbered(number) for number in range(5)]
    path = write_video(tmp_path / "v.mp4", images, times=times, audio=True)
    dataset = fo.Dataset()
    sample = fo.Sample(filepath=str(path))
    dataset.add_sample(sample)
    (note,) = correct_metadata(sample)
    assert re.search(said, note) and "regioncap conform" in note
    dataset.delete()


def test_a_video_that_is_not_there() -> None:
    with pytest.raises(VideoError, match=r"absent\.mp4"):
        video_metadata(fo.Sample(filepath="/nowhere/absent.mp4"))
