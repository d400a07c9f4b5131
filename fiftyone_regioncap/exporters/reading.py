"""Reads what others wrote: nothing in it is believed before it is checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from fiftyone_regioncap.core.types import RLE, polygons_to_mask
from fiftyone_regioncap.exporters.staging import ExportError

_MAX_PIXELS = 2**28  # far more than any video; keeps a forged size from taking memory


def main_file(path: Path, *names: str) -> Path:
    """The file of a format in an exported folder, or the one that was named.

    Raises:
        ExportError: when there is none.
    """
    if path.is_file():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ExportError(
        f"there is no {' or '.join(names)} in {path}; give the exported folder, "
        "for one with splits that of a split, or the file itself"
    )


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose outermost value is of a type.

    Raises:
        ExportError: when it isn't, or the file can't be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(value, kind):
        raise ExportError(f"{path} holds no JSON {kind.__name__}")
    return value


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a JSON lines file with their line numbers, from 1.

    Raises:
        ExportError: when a line is no JSON.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise ExportError(f"{path}:{number}: no JSON: {error}") from error


def checked_rle(value: Any, size: tuple[int, int] | None = None) -> RLE:
    """A mask out of a file: COCO run lengths, compressed or not, or polygons.

    Args:
        value: JSON.
        size: (height, width) that it should have; needed for polygons.

    Raises:
        ExportError: when it is none, or of another size.
    """
    if isinstance(value, list):
        return _polygons(value, size)
    try:
        height, width = (int(number) for number in value["size"])
        counts = value["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"no mask: {str(value)[:80]}") from error
    if size is not None and (height, width) != size:
        raise ExportError(
            f"a mask is {width}x{height}, its video {size[1]}x{size[0]}; import into "
            "the video that it was made for"
        )
    if not 0 < height * width <= _MAX_PIXELS:
        raise ExportError(f"a mask of {width}x{height} pixels")
    if isinstance(counts, list):
        if any(not isinstance(n, int) or n < 0 for n in counts):
            raise ExportError("a mask has run lengths below 0")
        total = sum(counts)
    else:
        total = sum(_run_lengths(counts))
    if total != height * width:
        raise ExportError(
            f"the runs of a mask cover {total} of {height * width} pixels; it is "
            "damaged"
        )
    if isinstance(counts, list):
        plain = {"size": [height, width], "counts": counts}
        counts = coco_mask.frPyObjects(plain, height, width)["counts"]
    elif isinstance(counts, str):
        counts = counts.encode("ascii")
    return RLE((height, width), counts)


def _run_lengths(counts: Any) -> list[int]:
    """Decodes COCO's compressed run lengths.

    pycocotools believes what it is given and writes past its memory otherwise.
    """
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    if not isinstance(text, bytes):
        raise ExportError("a mask has no run lengths")
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = character - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ExportError("the run lengths of a mask are damaged")
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ExportError("the run lengths of a mask are damaged")
        runs.append(value)
        value = shift = 0
    if shift:
        raise ExportError("the run lengths of a mask end too early")
    return runs


def _polygons(value: Sequence[Any], size: tuple[int, int] | None) -> RLE:
    """Polygons as COCO has them, ``[[x, y, x, y, ...], ...]``, by the even-odd rule."""
    if size is None:
        raise ExportError("a mask is given as polygons, and nothing says its size")
    try:
        rings = [np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in value]
    except (TypeError, ValueError) as error:
        raise ExportError(f"no polygon: {error}") from error
    if any(len(ring) < 3 or not np.isfinite(ring).all() for ring in rings):
        raise ExportError("a polygon has fewer than 3 points")
    mask = np.zeros(size, dtype=bool)
    for ring in rings:
        mask |= polygons_to_mask([ring], *size)
    return RLE.encode(mask)


def integer(value: Any, what: str) -> int:
    """A whole number out of a file, given as one or as its digits.

    Raises:
        ExportError: when it is none.
    """
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError) as error:
        raise ExportError(f"{what} is no whole number: {str(value)[:40]}") from error


def entries(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A list of objects inside an object.

    Raises:
        ExportError: when there is none.
    """
    found = value.get(key)
    if not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
        raise ExportError(f"there is no list of objects {key!r}")
    return found
