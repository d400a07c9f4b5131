"""Finds and opens the images and videos of a benchmark by what its files call them."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.dataset.clips import read_image
from fiftyone_regioncap.evaluation.benchmarks.reading import BenchmarkError
from fiftyone_regioncap.video.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset({".avi", ".mkv", ".mov", ".mp4", ".webm"})
_NUMBER = re.compile(r"(\d+)$")


def media_files(folder: str | Path) -> dict[str, Path]:
    """Finds images and videos by what annotation files call them.

    That is the path below the folder, the file's name, with or without its suffix, or
    the number that it ends in (``COCO_val2014_000000000042.jpg`` is 42).

    Args:
        folder: Folder of images or videos, subfolders included.

    Raises:
        BenchmarkError: If it is no folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BenchmarkError(f"{root} is no folder of images or videos")
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in known)
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(path.relative_to(root).as_posix(), path)
    for path in paths:
        for name in (path.name, path.stem):
            found.setdefault(name, path)
    for path in paths:
        number = _NUMBER.search(path.stem)
        if number:
            found.setdefault(str(int(number[1])), path)
    return found


@lru_cache(maxsize=4)
def _listed(folder: Path) -> dict[str, Path]:
    return media_files(folder)


def find_media(folder: Path, name: str) -> Path:
    """Returns the image, video or folder of frames that annotations name.

    Raises:
        BenchmarkError: If it is not there.
    """
    direct = folder / name
    if name and direct.exists():
        return direct
    known = _listed(folder)
    stem = Path(name).stem
    for key in (
        name,
        Path(name).name,
        stem,
        str(int(stem)) if stem.isdigit() else name,
    ):
        if key in known:
            return known[key]
    raise BenchmarkError(
        f"{folder} has no {name or 'media'}; give the folder of the media that the "
        "annotations are of, or a limit to those that are there"
    )


@lru_cache(maxsize=1)
def open_image(folder: Path, name: str) -> Frame:
    """Reads an image, uint8 (H, W, 3) RGB; the last one is kept for its next region.

    Raises:
        BenchmarkError: If it is not there.
        RegionCapError: If it is no image.
    """
    return read_image(str(find_media(folder, name)))


def is_image(path: Path) -> bool:
    """Returns whether a path is an image, rather than a video or a folder of frames."""
    return path.suffix.lower() in IMAGE_SUFFIXES
