from __future__ import annotations

from pathlib import Path

import av
import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.dataset.metadata import frame_size, video_metadata


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
        None,
        fo.VideoMetadata(size_bytes=1),  # of a tool that didn't look inside
        fo.VideoMetadata(frame_height=48, frame_width=64),
    ],
)
def test_the_frame_size_is_measured_where_unknown(
    video: fo.Sample, metadata: fo.VideoMetadata | None
) -> None:
    video.metadata = metadata
    assert frame_size(video) == (48, 64)


def test_a_video_that_is_not_there() -> None:
    with pytest.raises(VideoError, match=r"absent\.mp4"):
        video_metadata(fo.Sample(filepath="/nowhere/absent.mp4"))
