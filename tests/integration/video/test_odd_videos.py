"""About 80 odd videos, whose frames must be those that ffmpeg's own player shows."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import fiftyone as fo
import numpy as np
import pytest
from fiftyone.core.media import get_media_type

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.dataset.metadata import correct_metadata
from fiftyone_regioncap.video.reader import VideoReader
from tests.support import SHARED

UNREADABLE = {"trunc_noidx_end.mp4", "fps1000.mp4", "opengop_cut.ts"}
"""Files without an index, or whose first key frame is gone."""


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder with the script that makes the videos."""
    folder = Path(os.environ.get("REGIONCAP_CASES", SHARED / "cases")) / "videos"
    if not folder.is_dir() or shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg and the folder of cases; set REGIONCAP_CASES to it")
    return folder


@pytest.fixture(scope="session")
def coded(cases: Path) -> ModuleType:
    """The module that draws numbers into pictures and reads them."""
    spec = importlib.util.spec_from_file_location("coded", cases / "coded.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def odd_videos(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = cases
    made = tmp_path_factory.mktemp("odd")
    subprocess.run(["bash", folder / "make_odd_videos.sh", made], check=False)
    return sorted(path for path in made.glob("*/*") if path.stat().st_size)


def shown(path: Path, height: int, width: int) -> Iterator[np.ndarray]:
    """What ffmpeg shows of a file, frame by frame."""
    command = ["ffmpeg", "-v", "quiet", "-i", path, "-map", "0:V:0"]
    command += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while image := process.stdout.read(height * width * 3):
            yield np.frombuffer(image, np.uint8).reshape(height, width, 3)


def fault(path: Path) -> str | None:
    """What is wrong with how a file is read: forward, backward, by either backend."""
    with VideoReader(path) as reader, VideoReader(path, backend="pyav") as pyav:
        checksums: list[int] = []
        for image in shown(path, reader.height, reader.width):
            number = len(checksums)
            try:
                frame = reader[number]
                same = np.array_equal(frame, pyav[number])
            except (IndexError, VideoError) as error:
                if path.name.startswith("trunc") and number:
                    return None  # what is whole was read, and the rest is an error
                return str(error)
            if not same:
                return f"frame {number} differs between the backends"
            if np.abs(frame.astype(int) - image).mean() > 4:
                return f"frame {number} is another picture"
            checksums.append(zlib.crc32(frame.tobytes()))
        if len(checksums) != len(reader):
            return f"{len(reader)} frames instead of {len(checksums)}"
        backward = [zlib.crc32(reader[k].tobytes()) for k in range(len(reader))[::-1]]
    return None if backward[::-1] == checksums else "other frames backward"


@pytest.mark.slow
def test_frames_are_those_that_ffmpeg_shows(odd_videos: list[Path]) -> None:
    assert len(odd_videos) > 70
    faults = {}
    for path in odd_videos:
        try:
            faults[path.name] = fault(path)
        except VideoError as error:
            faults[path.name] = None if path.name in UNREADABLE else str(error)
    assert {name: said for name, said in faults.items() if said} == {}


FEW = {
    "rotated.mp4": ("-c:v libx264 -pix_fmt yuv420p", "-metadata:s:v rotate=90"),
    "live.webm": ("-c:v libvpx-vp9 -b:v 500k -f webm -live 1", None),
    "mpeg.mpg": ("-c:v mpeg2video -bf 2 -b:v 2M", None),
    "xvid.avi": ("-c:v mpeg4 -bf 2 -b:v 2M", None),
    "uneven.mp4": (
        "-vf select='not(mod(n\\,7))+lt(n\\,20)' -fps_mode vfr -c:v libx264 "
        "-pix_fmt yuv420p",
        None,
    ),
}
"""Encoders' options of a few of them, and options of a second pass over the packets."""


@pytest.fixture(scope="module")
def few_videos(tmp_path_factory: pytest.TempPathFactory, coded: ModuleType) -> Path:
    """A folder of a few odd videos of 40 numbered pictures."""
    folder = tmp_path_factory.mktemp("few")
    for name, (options, again) in FEW.items():
        coded.make(str(folder / name), 40, "25", options.split())
        if again is not None:
            whole = (folder / name).rename(folder / f"whole-{name}")
            command = ["ffmpeg", "-v", "error", "-i", whole, "-c", "copy"]
            subprocess.run([*command, *again.split(), folder / name], check=True)
            whole.unlink()
    return folder


@pytest.mark.parametrize("name", FEW)
def test_what_fiftyone_measures_is_corrected(
    few_videos: Path, coded: ModuleType, fiftyone_database: str, name: str
) -> None:
    dataset = fo.Dataset()
    dataset.add_sample(fo.Sample(filepath=str(few_videos / name)))
    dataset.compute_metadata(progress=False)
    correct_metadata(dataset.first())
    dataset.reload()
    stored = dataset.first().metadata
    with VideoReader(few_videos / name) as reader:
        frames = list(reader)
        assert (stored.frame_height, stored.frame_width) == frames[0].shape[:2]
        assert stored.total_frame_count == len(frames)
        # Which way ffmpeg turns it depends on its version; one way must read right.
        turns = (1, 3) if name == "rotated.mp4" else (0,)
        found = []
        for turn in turns:
            upright = [np.rot90(frame, turn) for frame in frames]
            assert {frame.shape[:2] for frame in upright} == {(coded.H, coded.W)}
            found.append([coded.read_number(frame) for frame in upright])
        expected = list(range(40))
        if name == "uneven.mp4":
            expected = [n for n in expected if n < 20 or n % 7 == 0]
            times = reader.timeline.times
            assert times == pytest.approx(np.array(expected) / 25, abs=1e-3)
        assert expected in found
    dataset.delete()


@pytest.mark.slow
def test_metadata_of_all_is_that_of_their_files(
    odd_videos: list[Path], fiftyone_database: str
) -> None:
    dataset = fo.Dataset()
    dataset.add_samples(
        fo.Sample(filepath=str(path), media_type="video")
        for path in odd_videos
        if get_media_type(str(path)) == "video"  # a GIF is an image to FiftyOne
    )
    dataset.compute_metadata(progress=False, skip_failures=True)
    for sample in dataset:
        try:
            correct_metadata(sample)
            with VideoReader(sample.filepath) as reader:
                assert sample.metadata.total_frame_count == len(reader) > 0
                assert sample.metadata.frame_width == reader.width
                assert (np.diff(reader.timeline.times) > 0).all()
        except VideoError:
            assert Path(sample.filepath).name in UNREADABLE
            continue
        assert not [note for note in correct_metadata(sample) if "corrected" in note]
    dataset.delete()
