"""About 80 odd videos, whose frames must be those that ffmpeg's own player shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.video.reader import VideoReader
from tests.support import SHARED

UNREADABLE = {"trunc_noidx_end.mp4", "fps1000.mp4", "opengop_cut.ts"}
"""Files without an index, or whose first key frame is gone."""


@pytest.fixture(scope="session")
def odd_videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = Path(os.environ.get("REGIONCAP_CASES", SHARED / "cases")) / "videos"
    if not folder.is_dir() or shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg and the folder of cases; set REGIONCAP_CASES to it")
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
