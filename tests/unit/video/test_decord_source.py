"""decord: which files it decodes, and that it makes no difference which one does."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.video import decord_source
from fiftyone_regioncap.video import reader as reader_module
from fiftyone_regioncap.video.reader import BACKEND_VARIABLE, VideoReader
from tests.unit.video.test_reader import (
    COUNT,
    FILES,
    number_of,
    orders,
    with_matrix,
    write_video,
)

pytest.importorskip("decord")

LOGGER = "fiftyone_regioncap"
DECORD = {"b_frames", "b_frames_mkv", "fast_start", "fragmented", "one_frame"}
DECORD |= {"variable_rate", "late_start", "with_sound"}


@pytest.fixture(autouse=True)
def automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers choose their backend."""
    monkeypatch.setenv(BACKEND_VARIABLE, "auto")


@pytest.fixture(scope="module", params=sorted(FILES))
def video(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[str, Path]:
    name = request.param
    return name, FILES[name](tmp_path_factory.mktemp(name))


def test_decord_decodes_what_it_is_provably_right_for(
    video: tuple[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    name, path = video
    with caplog.at_level(logging.DEBUG, logger=LOGGER), VideoReader(path) as reader:
        assert reader.backend == ("decord" if name in DECORD else "pyav")
    assert ("decoded by decord" in caplog.text) == (name in DECORD)
    assert ("decoded by PyAV" in caplog.text) == (name not in DECORD)


@pytest.mark.parametrize("name", sorted(DECORD))
def test_both_give_the_same_pixels(tmp_path: Path, name: str) -> None:
    path = FILES[name](tmp_path)
    with VideoReader(path, backend="pyav") as reader:
        frames = [frame.copy() for frame in reader]
    for order in orders(len(frames)).values():
        with VideoReader(path, cache_frames=1, backend="decord") as reader:
            for index in order:
                assert np.array_equal(reader[index], frames[index])


def test_both_give_the_same_pixels_of_real_clips(clips: Path) -> None:
    for path in sorted(clips.glob("**/*.mp4")):
        with (
            VideoReader(path, cache_frames=1, backend="decord") as decord,
            VideoReader(path, cache_frames=1, backend="pyav") as pyav,
        ):
            indices = [
                *range(12),
                *np.random.default_rng(0).integers(len(pyav), size=5),
            ]
            for index in indices:
                assert np.array_equal(decord[int(index)], pyav[int(index)])


def test_decord_takes_no_video_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FILES["b_frames"](tmp_path)
    size = COUNT * 96 * 128 * 3
    for limit, backend in ((size, "decord"), (size - 1, "pyav")):
        monkeypatch.setattr(reader_module, "DECORD_BYTES", limit)
        with VideoReader(path) as reader:
            assert reader.backend == backend


def test_the_variable_forces_a_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FILES["b_frames"](tmp_path)
    monkeypatch.setenv(BACKEND_VARIABLE, "pyav")
    with VideoReader(path) as reader:
        assert reader.backend == "pyav"
    with VideoReader(path, backend="decord") as reader:
        assert reader.backend == "decord"
    monkeypatch.setenv(BACKEND_VARIABLE, "opencv")
    with pytest.raises(ValueError, match="auto, pyav, decord"):
        VideoReader(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("open_gop", "not closed"),
        ("gradual_refresh", "not closed"),
        ("vp9_superframes", "not 8-bit 4:2:0 H.264"),
        ("h264_ts", "neither MP4 nor Matroska"),
        ("avi_h264", "do not tell"),
        ("turned", "rotated"),
        ("cut off", "cut off"),
    ],
)
def test_decord_is_refused_where_it_may_be_wrong(
    tmp_path: Path, name: str, reason: str
) -> None:
    if name == "turned":
        path = with_matrix(FILES["one_frame"](tmp_path), (0, 1, -1, 0))
    elif name == "cut off":
        path = FILES["fast_start"](tmp_path)
        path.write_bytes(path.read_bytes()[:-900])
    else:
        path = FILES[name](tmp_path)
    with pytest.raises(VideoError, match=reason):
        VideoReader(path, backend="decord")


def test_pyav_takes_over_where_decord_meets_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(
        tmp_path / "damaged.mp4",
        [np.full((96, 128, 3), 9 * number, np.uint8) for number in range(20)],
        bf="0",
        g="5",
    )
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][12]
        place, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    with VideoReader(path) as reader:
        assert reader.backend == "decord"
        with pytest.raises(VideoError, match="frame 13 is damaged") as caught:
            list(reader)
        assert caught.value.last_good_frame == 11
        assert reader.backend == "pyav"
        assert reader[15].mean() == pytest.approx(9 * 15, abs=6)
    assert "going on with PyAV" in caplog.text


def test_a_file_that_changes_is_looked_at_anew(tmp_path: Path) -> None:
    path = FILES["b_frames"](tmp_path)
    with VideoReader(path) as reader:
        assert len(reader) == COUNT
    FILES["one_frame"](tmp_path).replace(path)
    with VideoReader(path) as reader:
        assert len(reader) == 1
        assert number_of(reader[0]) == 0


def test_without_decord_pyav_decodes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FILES["b_frames"](tmp_path)
    decord_source._decord.cache_clear()
    monkeypatch.setitem(sys.modules, "decord", None)
    with VideoReader(path) as reader:
        assert reader.backend == "pyav"
        assert number_of(reader[COUNT - 1]) == COUNT - 1
    with pytest.raises(VideoError, match="cannot be imported"):
        VideoReader(path, backend="decord")
